"""The Discord side: one module per command family; what begins with an underscore is shared by them."""
