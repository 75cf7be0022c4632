"""Our pages and routes of the hub in the language of who reads them.

JupyterHub makes its template environments once for everybody. `gettext` and its kin, put there, look at each
call for whom the page is made: JupyterHub gives `static_url` to every page, a bound method of the request's
handler. What is rendered outside of a page is given the `language` itself.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2.runtime import Context
from tornado import web
from tornado.httputil import HTTPServerRequest

from qemuspawner.hub.json_body import ReadsJson
from qemuspawner.languages import Language, choose_language, list_choices, load_languages

_ENVIRONMENTS = ("jinja2_env", "jinja2_env_sync")


def speak_languages(settings: dict[str, Any]) -> None:
    """Let the hub's templates say `_("...")`; harmless when done already."""
    for name in _ENVIRONMENTS:
        if "find_language" not in settings[name].globals:
            teach_languages(settings[name])


def teach_languages(environment: jinja2.Environment) -> None:
    """Let its templates say `_("...")` and its kin, each page in its reader's language."""
    environment.add_extension("jinja2.ext.i18n")
    environment.install_gettext_callables(  # type: ignore[attr-defined]
        _by_language("gettext"),
        _by_language("ngettext"),
        newstyle=True,
        pgettext=_by_language("pgettext"),
        npgettext=_by_language("npgettext"),
    )
    environment.globals["find_language"] = jinja2.pass_context(_find_language)
    environment.globals["plurals"] = _by_language("plurals")
    environment.globals["say"] = _by_language("say")
    environment.globals["languages"] = list_choices(load_languages().values())
    environment.globals["note_reader"] = jinja2.pass_context(_note_reader)


def http_error(request: HTTPServerRequest, status: int, text: str) -> web.HTTPError:
    """An error of a route, which tells whoever asked in their language, and the log in English."""
    error = web.HTTPError(status, text)
    error.jupyterhub_message = choose_language(request).say(text)  # type: ignore[attr-defined]
    return error


class SpeakingHandler(ReadsJson):
    """A route of the hub's REST API whose answers people read."""

    @functools.cached_property
    def language(self) -> Language:
        """What this request's person reads."""
        return choose_language(self.request)

    def say(self, answer: object) -> None:
        """Answer this, as JSON."""
        self.write(json.dumps(self.language.say(answer)))


def _by_language(function: str) -> Callable[..., Any]:
    @jinja2.pass_context
    def say(context: Context, *arguments: Any) -> Any:
        return getattr(_find_language(context), function)(*arguments)

    return say


def _note_reader(context: Context) -> str:
    """Have it noted in which language whoever opens this page reads; says nothing itself."""
    handler = getattr(context.get("static_url"), "__self__", None)
    spawner: Any = getattr(getattr(handler, "current_user", None), "spawner", None)
    if hasattr(spawner, "note_reading"):
        spawner.note_reading(_find_language(context).tag)
    return ""


def _find_language(context: Context) -> Language:
    """English where nobody is known to read, as in a macro that was imported without its page's context."""
    given = context.get("language")
    if isinstance(given, Language):
        return given
    handler = getattr(context.get("static_url"), "__self__", None)
    if isinstance(handler, web.RequestHandler):
        return choose_language(handler.request)
    return load_languages()["en"]
