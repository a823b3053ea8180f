"""The one parameter of a custom query, `:cursor`, found with a tokenizer: strings and comments are left alone."""

from __future__ import annotations

import itertools

from headwater.errors import ConfigError

CURSOR = "cursor"


def with_cursor(sql: str, put: str, *, dialect: str, others: bool) -> str:
    """The statement with `put` for each `:cursor`, without the `;` at its end. `dialect` is sqlglot's name.

    Raises `ConfigError` for another `:word`, unless `others` may stand there (an array's slice).
    """
    from sqlglot import Dialect, TokenType
    from sqlglot.errors import SqlglotError

    try:
        tokens = Dialect.get_or_raise(dialect).tokenize(sql)
    except SqlglotError as error:
        raise ConfigError(f"query cannot be read: {error}") from error
    out, end = [], 0
    for colon, word in itertools.pairwise(tokens):
        if colon.token_type != TokenType.COLON or word.start != colon.end + 1:
            continue
        if word.text == CURSOR:
            out.append(sql[end : colon.start] + put)
            end = word.end + 1
        elif not others:
            raise ConfigError(f"query: `:{word.text}` is no parameter", hint="the only one is `:cursor`")
    return ("".join(out) + sql[end:]).strip().rstrip(";")
