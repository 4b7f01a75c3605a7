"""Webhooks: a small message to a URL of the user for each thing that happens to a training job.

Messages and signatures are those of Standard Webhooks
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md) with OpenAI's
body, so that a receiver verifies them with `openai`'s `webhooks.unwrap`. What is told when, and to whom,
stands in `luthier.service.notifications`.
"""

from luthier.webhooks.events import EVENT_TYPES, TYPE_OF_STATE, EventType, WebhookEvent
from luthier.webhooks.signatures import hint_of, new_secret, sign

__all__ = [
    "EVENT_TYPES",
    "TYPE_OF_STATE",
    "EventType",
    "WebhookEvent",
    "hint_of",
    "new_secret",
    "sign",
]
