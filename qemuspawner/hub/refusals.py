"""What stands against a start, said to whoever asked for it in their language."""

from typing import Any

from jupyterhub.spawner import SpawnException
from traitlets.config import LoggingConfigurable

from qemuspawner.errors import QemuSpawnerError
from qemuspawner.hub import metrics
from qemuspawner.languages import Language, choose_language, load_languages


class Refuses(LoggingConfigurable):
    """Part of `QemuSpawnerMixin`."""

    user: Any
    handler: Any  # of the request that JupyterHub has noted here: the form's, or the start's while it lasts

    @property
    def language(self) -> Language:
        """Of who asked for this start; English where that was nobody."""
        return load_languages()["en"] if self.handler is None else choose_language(self.handler.request)

    @property
    def form_language(self) -> Language:
        """Of who reads the form that is being made.

        After an error it is the default server's, while the request is noted with the one that was to start.
        """
        noted: Language | None = getattr(self.user, "_qemuspawner_language", None)
        return self.language if noted is None or is_asking(self.handler) else noted

    def note_reader(self, handler: Any) -> None:
        """This request's answer may be the form of another server of the user's."""
        self.user._qemuspawner_language = choose_language(handler.request)

    def failure(self, message: str, hint: str) -> SpawnException:
        return self.refusal(QemuSpawnerError(message, hint=hint), reason="session", status_code=500)

    def refusal(self, exc: QemuSpawnerError, *, reason: str, status_code: int = 400) -> SpawnException:
        """An error as JupyterHub shows it to the user; counted here and there, and logged in English."""
        metrics.REFUSALS.labels(reason).inc()
        refusal = SpawnException(exc.text, reason=reason, status_code=status_code)
        # The form and the pending page show this; else they would show the exception's name as well.
        refusal.jupyterhub_message = self.language.say(exc.text)
        return refusal


def is_asking(handler: Any) -> bool:
    """Whether JupyterHub's request that it noted with the spawner is the one that is being answered."""
    return handler is not None and not handler._finished
