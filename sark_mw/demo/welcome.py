"""What `--serve` prints: where everything is, and commands to paste."""

from __future__ import annotations

from rich.console import Console

from sark_mw.demo.cast import CALLERS, LIMITS

_TEXT = """\
The gateway is up, with budgets that are small enough to be spent by hand. Ctrl-C ends it.

  gateway   {gateway}
  metrics   {desk}/metrics
  budgets   {desk}/now

  key               pays          team           budget
{keys}

OpenAI:
  curl -i {gateway}/v1/chat/completions -H 'authorization: Bearer {openai_key}' \\
    -H 'content-type: application/json' \\
    -d '{{"model": "gpt-4o", "max_tokens": 100, "messages": [{{"role": "user", "content": "Hello"}}]}}'

OpenAI, streaming:
  curl -iN {gateway}/v1/chat/completions -H 'authorization: Bearer {openai_key}' \\
    -H 'content-type: application/json' \\
    -d '{{"model": "gpt-4o", "max_tokens": 100, "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'

Anthropic:
  curl -i {gateway}/v1/messages -H 'x-api-key: {anthropic_key}' -H 'anthropic-version: 2023-06-01' \\
    -H 'content-type: application/json' \\
    -d '{{"model": "claude-sonnet-4-5", "max_tokens": 100, "messages": [{{"role": "user", "content": "Hello"}}]}}'

One call that no budget here can pay (402, with what would be affordable):
  curl -i {gateway}/v1/messages -H 'x-api-key: {anthropic_key}' -H 'anthropic-version: 2023-06-01' \\
    -H 'content-type: application/json' \\
    -d '{{"model": "claude-sonnet-4-5", "max_tokens": 60000, "messages": [{{"role": "user", "content": "Hello"}}]}}'

Official clients:
  openai.OpenAI(base_url="{gateway}/v1", api_key="{openai_key}")
  anthropic.Anthropic(base_url="{gateway}", api_key="{anthropic_key}")
"""


def print_welcome(console: Console, gateway: str, desk: str) -> None:
    """Print addresses, keys and commands."""
    budgets = {
        limit.scope: f"${limit.amount} a {limit.window}" if limit.window != "total" else f"${limit.amount}" for limit in LIMITS
    }
    keys = "\n".join(
        f"  {caller.key:<17} {caller.name:<13} {caller.team:<14} {budgets[caller.name]}, team {budgets[caller.team]}"
        for caller in CALLERS
    )
    text = _TEXT.format(gateway=gateway, desk=desk, keys=keys, openai_key=CALLERS[0].key, anthropic_key=CALLERS[1].key)
    console.out(text, highlight=False)
