# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# mypy: disable-error-code="untyped-decorator, valid-type, no-any-return"
"""The loops of the `pgoutput` decoder: over the messages once, then over the values of each column.

Cython in pure Python mode: without a compiler the same lines run as they are, with the same results. `Scan` finds
where each wanted value begins. A value's length, which is checked there, lies in the four bytes before it; so the loops
over a column read nothing that was not checked, and a place is all that is kept of a value.

Numbers read from bytes are signed 64-bit integers or fit them, in C as in Python.
"""

from __future__ import annotations

try:
    import cython
except ImportError:
    from headwater.wire import uncompiled as cython

LATEST = 2**63 - 1 - 946_684_800_000_000  # a time since 2000 that fits 64 bits since 1970, in microseconds
NULL, UNCHANGED = -1, -2  # in `places`

# What `Scan.run` stops with. Those from 10 on are errors; `FAULTS` says them.
DONE, RELATION, ROOM = 0, 1, 2
FAULTS = {
    10: "is neither `w` with a message nor a keepalive",
    11: "ends within a field",
    12: "goes on behind its end",
    13: "is of an unknown kind",
    14: "belongs to a prepared transaction; the slot must be made without `two_phase`",
    15: "belongs to a streamed transaction, among whole ones",
    16: "is not within a transaction",
    17: "begins a transaction within another one",
    18: "ends another transaction than the one that began",
    19: "is of a relation that the server has not described",
    20: "has another number of columns than its relation",
    21: "has a value of an unknown kind",
    22: "has a value in another format (text, binary) than expected",
    23: "says that a value of an old row is unchanged",
    24: "has neither a new row nor an old one where one is expected",
    25: "has a time that 64 bits do not hold",
}

# The fields of a row and of a transaction, as `Scan` writes them.
SLOT, OP, TRANSACTION, ORDINAL, AFTER, BEFORE, BEFORE_KIND, ROW_FIELDS = range(8)
XID, COMMIT, END, TIME, ORIGIN, TRANSACTION_FIELDS = range(6)


def letters(
    data: cython.const[cython.uchar][::1], ends: cython.const[cython.longlong][::1], out: cython.uchar[::1]
) -> int:
    """The letter of each frame's message, 0 for a keepalive; -1, or the place of the first frame that is neither.

    The ends ascend within the data.
    """
    frame: cython.longlong
    start: cython.longlong = 0
    size: cython.longlong
    bad: cython.longlong = -1
    with cython.nogil:
        for frame in range(ends.shape[0]):
            size = ends[frame] - start
            if data[start] == ord("w") and size > 25:
                out[frame] = data[start + 25]
            elif data[start] == ord("k") and size == 18:
                out[frame] = 0
            else:
                bad = frame
                break
            start = ends[frame]
    return bad


def places(letters: cython.const[cython.uchar][::1]) -> tuple[int, int, int, int, int, int, int]:
    """Where there is, counted from 0, -1 for nowhere: the first of streaming (S, E, c, A), the first C, the last C, the
    first B behind that, the first R, the last keepalive, the last M.
    """
    place: cython.longlong
    letter: cython.int
    streaming: cython.longlong = -1
    commit: cython.longlong = -1
    last_commit: cython.longlong = -1
    begin: cython.longlong = -1
    relation: cython.longlong = -1
    keepalive: cython.longlong = -1
    message: cython.longlong = -1
    with cython.nogil:
        for place in range(letters.shape[0]):
            letter = letters[place]
            if letter == ord("C"):
                commit = place if commit < 0 else commit
                last_commit = place
                begin = -1
            elif letter == ord("B"):
                begin = place if begin < 0 else begin
            elif letter == ord("R"):
                relation = place if relation < 0 else relation
            elif letter == 0:
                keepalive = place
            elif letter == ord("M"):
                message = place
            elif letter == ord("S") or letter == ord("E") or letter == ord("c") or letter == ord("A"):
                streaming = place if streaming < 0 else streaming
    return streaming, commit, last_commit, begin, relation, keepalive, message


@cython.cclass
class Scan:
    """Goes over frames up to something that Python must see to: `run` says what, `at_frame` where.

    The arrays are the caller's. `relations` (sorted oids), `slots` (of the oid at the same place), `tables` (per slot:
    columns, where they begin in the next two, wanted columns or -1 for none), `targets` (per column: its place among
    the wanted ones or -1) and `formats` (per column: `t`, `b` or 0 for either). `rows`, `places` and `transactions` are
    written to: a row has the fields above, AFTER and BEFORE being where its tuple begins in `places`, or -1.
    """

    data: cython.const[cython.uchar][::1]
    ends: cython.const[cython.longlong][::1]
    aborted: cython.const[cython.longlong][::1]
    relations: cython.const[cython.longlong][::1]
    slots: cython.const[cython.longlong][::1]
    tables: cython.const[cython.longlong][:, ::1]
    targets: cython.const[cython.longlong][::1]
    formats: cython.const[cython.longlong][::1]
    rows: cython.longlong[:, ::1]
    places: cython.longlong[::1]
    transactions: cython.longlong[:, ::1]
    part: cython.bint
    streamed: cython.bint
    open: cython.bint
    several: cython.bint
    frame: cython.longlong
    at: cython.longlong
    end: cython.longlong
    row: cython.longlong
    value: cython.longlong
    transaction: cython.longlong
    ordinal: cython.longlong
    latest: cython.longlong
    missing: cython.longlong

    def __init__(
        self,
        data: cython.const[cython.uchar][::1],
        ends: cython.const[cython.longlong][::1],
        aborted: cython.const[cython.longlong][::1],
        part: cython.bint,
        streamed: cython.bint,
        ordinal: cython.longlong,
    ) -> None:
        self.data = data
        self.ends = ends
        self.aborted = aborted
        self.part = part
        self.streamed = streamed
        self.open = part
        self.several = False
        self.frame = self.at = self.end = self.row = self.value = 0
        self.transaction = 1 if part else 0
        self.ordinal = ordinal
        self.latest = LATEST
        self.missing = 0

    def know(
        self,
        relations: cython.const[cython.longlong][::1],
        slots: cython.const[cython.longlong][::1],
        tables: cython.const[cython.longlong][:, ::1],
        targets: cython.const[cython.longlong][::1],
        formats: cython.const[cython.longlong][::1],
    ) -> None:
        self.relations = relations
        self.slots = slots
        self.tables = tables
        self.targets = targets
        self.formats = formats

    def write_to(
        self,
        rows: cython.longlong[:, ::1],
        places: cython.longlong[::1],
        transactions: cython.longlong[:, ::1],
    ) -> None:
        """These hold what was written until now, at the same places."""
        self.rows = rows
        self.places = places
        self.transactions = transactions

    def progress(self) -> tuple[int, int, int, int, int, bool]:
        """The frame, how many rows, places and transactions are written, the next row's ordinal, and whether the last
        transaction goes on."""
        return self.frame, self.row, self.value, self.transaction, self.ordinal, bool(self.open)

    def begin_again(self) -> None:
        """The arrays are empty again, but for the transaction that goes on: it must be the first now."""
        self.row = self.value = 0
        self.several = False
        self.transaction = 1 if self.open else 0

    def of_several_tables(self) -> bool:
        """Whether the rows written are."""
        return bool(self.several)

    def pass_frame(self) -> None:
        self.frame += 1

    def unchanged_values(self) -> int:
        """How many there were until now, of all tables and columns."""
        return self.missing

    def at_byte(self) -> int:
        return self.at

    def run(self) -> int:
        code: cython.int
        with cython.nogil:
            code = self._run()
        return code

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _run(self) -> cython.int:
        count: cython.longlong = self.ends.shape[0]
        code: cython.int = 0
        while self.frame < count:
            code = self._message()
            if code != 0:
                return code
            self.frame += 1
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _message(self) -> cython.int:
        kind: cython.int
        self.at = self.ends[self.frame - 1] if self.frame > 0 else 0
        self.end = self.ends[self.frame]
        kind = self.data[self.at]
        if kind == ord("k") and self.end - self.at == 18:
            return 0
        if kind != ord("w") or self.end - self.at < 26:
            return 10
        kind = self.data[self.at + 25]
        self.at += 26
        if kind == ord("I") or kind == ord("U") or kind == ord("D"):
            return self._change(kind)
        if kind == ord("R"):
            return 1
        if kind == ord("T"):
            return self._truncate()
        if kind == ord("Y") or kind == ord("M"):
            return 0
        return self._control(kind)

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _control(self, kind: cython.int) -> cython.int:
        """What says where transactions begin and end; passed over where the caller knows that already."""
        if kind == ord("S") or kind == ord("E") or kind == ord("A") or kind == ord("c"):
            return 0 if self.part else 15
        if kind == ord("b") or kind == ord("P") or kind == ord("K") or kind == ord("r") or kind == ord("p"):
            return 14
        if kind == ord("O"):
            return self._origin()
        if kind != ord("B") and kind != ord("C"):
            return 13
        if self.part:
            return 0
        return self._begin() if kind == ord("B") else self._commit()

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _begin(self) -> cython.int:
        time: cython.longlong
        if self.end - self.at != 20:
            return 11 if self.end - self.at < 20 else 12
        if self.open:
            return 17
        if self.transaction >= self.transactions.shape[0]:
            return 2
        time = number(self.data, self.at + 8)
        if time > self.latest:
            return 25
        self.transactions[self.transaction, 0] = word(self.data, self.at + 16)
        self.transactions[self.transaction, 1] = number(self.data, self.at)
        self.transactions[self.transaction, 2] = 0
        self.transactions[self.transaction, 3] = time
        self.transactions[self.transaction, 4] = -1
        self.transaction += 1
        self.open = True
        self.ordinal = 0
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _commit(self) -> cython.int:
        if self.end - self.at != 25:
            return 11 if self.end - self.at < 25 else 12
        if not self.open:
            return 16
        if number(self.data, self.at + 1) != self.transactions[self.transaction - 1, 1]:
            return 18
        self.transactions[self.transaction - 1, 2] = number(self.data, self.at + 9)
        self.open = False
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _origin(self) -> cython.int:
        """The name is read later, from the frame."""
        if not self.open:
            return 16
        self.transactions[self.transaction - 1, 4] = self.frame
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _change(self, kind: cython.int) -> cython.int:
        slot: cython.longlong
        wanted: cython.longlong
        code: cython.int
        code = self._subtransaction()
        if code != 0:
            return code if code > 0 else 0
        if not self.open:
            return 16
        if self.end - self.at < 5:
            return 11
        slot = self._find(self.relations, word(self.data, self.at))
        if slot < 0:
            return 19
        slot = self.slots[slot]
        self.at += 4
        wanted = self.tables[slot, 2]
        if wanted < 0:
            self.ordinal += 1
            return 0
        if self.row >= self.rows.shape[0] or self.value + 2 * wanted > self.places.shape[0]:
            return 2
        self._row(slot, 1 if kind == ord("I") else 2 if kind == ord("U") else 3)
        code = self._tuples(kind, slot)
        if code == 0 and self.at != self.end:
            return 12
        self.row += 1
        return code

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _subtransaction(self) -> cython.int:
        """Passes the number that streamed messages begin with. -1: what it did was rolled back."""
        if not self.streamed:
            return 0
        if self.end - self.at < 4:
            return 11
        self.at += 4
        if self.aborted.shape[0] > 0 and self._find(self.aborted, word(self.data, self.at - 4)) >= 0:
            return -1
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _row(self, slot: cython.longlong, op: cython.longlong) -> cython.void:
        self.rows[self.row, 0] = slot
        if self.row > 0 and self.rows[self.row - 1, 0] != slot:
            self.several = True
        self.rows[self.row, 1] = op
        self.rows[self.row, 2] = self.transaction - 1
        self.rows[self.row, 3] = self.ordinal
        self.rows[self.row, 4] = -1
        self.rows[self.row, 5] = -1
        self.rows[self.row, 6] = 0
        self.ordinal += 1

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _tuples(self, kind: cython.int, slot: cython.longlong) -> cython.int:
        """The old row, where there is one, and the new one."""
        code: cython.int
        mark: cython.int = self.data[self.at]
        self.at += 1
        if kind != ord("I") and (mark == ord("K") or mark == ord("O")):
            self.rows[self.row, 5] = self.value
            self.rows[self.row, 6] = 1 if mark == ord("K") else 2
            code = self._tuple(slot, True)
            if code != 0 or kind == ord("D"):
                return code
            if self.at >= self.end:
                return 11
            mark = self.data[self.at]
            self.at += 1
        if mark != ord("N") or kind == ord("D"):
            return 24
        self.rows[self.row, 4] = self.value
        return self._tuple(slot, False)

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _tuple(self, slot: cython.longlong, old: cython.bint) -> cython.int:
        first: cython.longlong = self.tables[slot, 1]
        width: cython.longlong = self.tables[slot, 0]
        base: cython.longlong = self.value
        column: cython.longlong
        place: cython.longlong
        if self.end - self.at < 2:
            return 11
        if half(self.data, self.at) != width:
            return 20
        self.at += 2
        for column in range(first, first + width):
            place = self._place(column, old)
            if place <= -10:
                return -place
            if self.targets[column] >= 0:
                self.places[base + self.targets[column]] = place
        self.value = base + self.tables[slot, 2]
        return 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    @cython.nogil
    def _place(self, column: cython.longlong, old: cython.bint) -> cython.longlong:
        """Where the next value begins, -1 for NULL, -2 if it is unchanged; an error with a minus before it."""
        kind: cython.int
        size: cython.longlong
        if self.at >= self.end:
            return -11
        kind = self.data[self.at]
        self.at += 1
        if kind == ord("t") or kind == ord("b"):
            if self.formats[column] != 0 and self.formats[column] != kind:
                return -22
            if self.end - self.at < 4:
                return -11
            size = word(self.data, self.at)
            self.at += 4
            if size > self.end - self.at:
                return -11
            self.at += size
            return self.at - size
        if kind == ord("n"):
            return -1
        if kind != ord("u"):
            return -21
        self.missing += 1
        return -23 if old else -2

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _truncate(self) -> cython.int:
        count: cython.longlong
        slot: cython.longlong
        code: cython.int
        code = self._subtransaction()
        if code != 0:
            return code if code > 0 else 0
        if not self.open:
            return 16
        if self.end - self.at < 5:
            return 11
        count = word(self.data, self.at)
        self.at += 5
        if self.end - self.at != 4 * count:
            return 11 if self.end - self.at < 4 * count else 12
        if self.row + count > self.rows.shape[0]:
            return 2
        for _ in range(count):
            slot = self._find(self.relations, word(self.data, self.at))
            if slot < 0:
                return 19
            slot = self.slots[slot]
            if self.tables[slot, 2] >= 0:
                self._row(slot, 5)
                self.row += 1
            else:
                self.ordinal += 1
            self.at += 4
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    @cython.nogil
    def _find(self, numbers: cython.const[cython.longlong][::1], wanted: cython.longlong) -> cython.longlong:
        """The place of a number among sorted ones, or -1."""
        low: cython.longlong = 0
        high: cython.longlong = numbers.shape[0]
        middle: cython.longlong
        while low < high:
            middle = (low + high) // 2
            if numbers[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        if low < numbers.shape[0] and numbers[low] == wanted:
            return low
        return -1


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def half(data: cython.const[cython.uchar][::1], at: cython.longlong) -> cython.longlong:
    """Two bytes without a sign."""
    high: cython.longlong = data[at]
    low: cython.longlong = data[at + 1]
    return (high << 8) | low


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def word(data: cython.const[cython.uchar][::1], at: cython.longlong) -> cython.longlong:
    """Four bytes without a sign."""
    return (half(data, at) << 16) | half(data, at + 2)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
@cython.nogil
def number(data: cython.const[cython.uchar][::1], at: cython.longlong) -> cython.longlong:
    """Eight bytes with a sign."""
    high: cython.longlong = half(data, at)
    high = high - 65536 if high >= 32768 else high
    return ((high * 65536) + half(data, at + 2)) * 65536 * 65536 + word(data, at + 4)
