"""The check of base models: whether there is one, and whether each can be loaded."""

from collections.abc import Iterator

from luthier.cli.doctor.finding import Finding, failed, ok, warning
from luthier.errors import LuthierError
from luthier.inspection import check_config
from luthier.models import list_models
from luthier.settings import Settings


def check_models(settings: Settings) -> Iterator[Finding]:
    """One line for all good models, and one for each that is not."""
    good = []
    for model in list_models(settings.models):
        try:
            check_config(model.path)
        except LuthierError as error:
            yield failed("models", f"{model.id}: {error.message}", f"remove {model.path}, or put it right")
        else:
            good.append(model.id)
    if good:
        yield ok("models", ", ".join(good))
    else:
        yield warning(
            "models",
            f"none in {settings.models}",
            "run `luthier models add-sample tiny`, or `luthier models pull ORGANISATION/NAME`",
        )
