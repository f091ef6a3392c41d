"""What tests and tools share and the product never imports."""
