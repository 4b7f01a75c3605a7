"""The routes, one resource a file; each opens its own short transactions and answers after the commit."""
