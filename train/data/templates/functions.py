"""How functions are told to Gemma 3, which has no tokens for them: by words, as its documentation writes them.

https://ai.google.dev/gemma/docs/capabilities/function-calling, the variant whose calls are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..shapes.conversation import ToolCall

INSTRUCTION = """You have access to functions. If you decide to invoke any of the function(s),
you MUST put it in the format of
{"name": function name, "parameters": dictionary of argument name and its value}

You SHOULD NOT include any other text in the response if you call a function
"""


def functions_text(tools: Sequence[dict[str, Any]]) -> str:
    """The instruction and the functions as a JSON list, for the beginning of the first turn."""
    return INSTRUCTION + json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False, indent=2)


def calls_text(calls: Sequence[ToolCall]) -> str:
    """An answer that is calls: the JSON of one, or a list of several."""
    written = [{"name": call.name, "parameters": call.parameters()} for call in calls]
    return json.dumps(written[0] if len(written) == 1 else written, ensure_ascii=False)
