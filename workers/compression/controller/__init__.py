"""The adaptive controller (CC-17 to CC-23): which codec for which bucket, decided alike on all ranks while it runs."""
