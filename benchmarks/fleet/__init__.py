"""The real coordinator and its governor against hundreds and thousands of simulated hosts over real gRPC."""
