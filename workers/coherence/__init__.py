"""What a rank measures of itself, by which hosts are compared (GM-14 to GM-17)."""
