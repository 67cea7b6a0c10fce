"""PyTorch definitions of Mobile-O: what no library has, and how the libraries' parts are put together."""
