"""Requests made at random from the OpenAPI document, against a live server."""
