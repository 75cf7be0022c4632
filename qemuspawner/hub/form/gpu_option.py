"""The option `gpu`: "none", a model, how many of any one model, or "MODEL:NUMBER"."""

import re
from collections.abc import Mapping

from qemuspawner.hub.form.fields import Field, any_of, quote
from qemuspawner.machine import Machine
from qemuspawner.spec import Gpus
from qemuspawner.texts import Text

_COUNT = re.compile(r"[0-9]{1,4}", re.ASCII)
# What people write who want no GPU.
_NONE = ("", "none", "0")


def gpu_field(machine: Machine, most: Mapping[str, int]) -> Field:
    """The option for this machine; `most` is how many of each model a desktop can have."""
    needs_one = machine.gpu.need == "required"

    def parse(value: object) -> Gpus | None:
        asked = _parse_gpus(value, most)
        if (asked is None and needs_one) or (asked is not None and not _is_offered(asked, machine, most)):
            raise ValueError
        return asked

    return Field(
        name="gpu",
        # Where there are none, that the machine cannot start is said of the machine.
        default=Gpus(count=1) if needs_one and most else None,
        parse=parse,
        bound=_bound(machine, most),
    )


def offered_gpus(machine: Machine, most: Mapping[str, int]) -> list[Gpus]:
    """What a form offers beside none."""
    if machine.gpu.need == "none":
        return []
    return [Gpus(model=model, count=count) for model in sorted(most) for count in range(1, most[model] + 1)]


def _is_offered(asked: Gpus, machine: Machine, most: Mapping[str, int]) -> bool:
    return machine.gpu.need != "none" and any(
        asked.count <= count for model, count in most.items() if asked.model in ("", model)
    )


def _bound(machine: Machine, most: Mapping[str, int]) -> str:
    if machine.gpu.need == "none":
        return Text("{machine} takes no GPU", machine=quote(machine.name))
    if not most:
        return Text("this hub has no GPUs for desktops")
    gpus = any_of(
        Text("{count} of {model}", count=count, model=quote(model)) for model, count in sorted(most.items())
    )
    if machine.gpu.need == "required":
        return Text("{machine} needs a GPU, at most {gpus}", machine=quote(machine.name), gpus=gpus)
    return Text("a desktop can have at most {gpus}", gpus=gpus)


def _parse_gpus(value: object, models: Mapping[str, int]) -> Gpus | None:
    """None for no GPU; capitals do not count. Raises ValueError with a reason."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10000:
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(Text("it is not a model of GPUs, nor a number of them"))
    text = value.strip().lower()
    if text in _NONE:
        return None
    known = {model.lower(): model for model in models}
    name, colon, count = text.rpartition(":")
    if text in known:  # also one that has a colon and digits in its name
        return Gpus(model=known[text], count=1)
    if not _COUNT.fullmatch(count) or int(count) == 0 or (colon and name not in known):
        raise ValueError
    return Gpus(model=known.get(name, ""), count=int(count))
