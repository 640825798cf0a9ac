"""Operations on channels of a cluster, by annotation, as docs/kubernetes.md has them."""

from __future__ import annotations

import json
import time
from typing import Any

from support.kubernetes import Namespace, NotYet, Object, eventually


def asked(namespace: Namespace, channel: str, verb: str, **arguments: Any) -> tuple[str, str]:
    """(state, message) of the operation, which an Event tells too."""
    number = f"{verb}-{time.time_ns()}"
    text = json.dumps({"id": number, "verb": verb, **arguments})
    namespace.kubectl("annotate", "--overwrite", f"schan/{channel}", f"qsg.dev/operation={text}")

    def done() -> Object:
        last: Object = namespace.get("schan", channel)["status"].get("lastOperation") or {}
        if last.get("id") != number or last["message"] == "begun":
            raise NotYet(last)
        return last

    outcome = eventually(done, 60, f"{verb} of {channel} is done")
    assert outcome["verb"] == verb
    events = json.loads(namespace.kubectl("get", "events", "--field-selector", f"involvedObject.name={channel}", "-o", "json"))
    (event,) = [one for one in events["items"] if f"({number})" in one["message"]]
    assert event["reason"] == f"Operation{outcome['state']}" and outcome["message"] in event["message"]
    assert event["type"] == ("Normal" if outcome["state"] == "Succeeded" else "Warning")
    return outcome["state"], outcome["message"]
