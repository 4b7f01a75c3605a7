"""The objects that the API answers with, and how they are made of rows; one resource a file."""
