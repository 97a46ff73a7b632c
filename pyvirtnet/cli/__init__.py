"""One module per command; the tools/ scripts are doors to them."""
