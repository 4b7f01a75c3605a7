"""The HTTP side of Luthier: routes, schemas, errors. It never imports torch, the worker or the trainer."""
