"""Whether the server's lock table has room for what this installation locks at once.

Postgres has room for max_locks_per_transaction x (max_connections + max_prepared_transactions)
locks in all. Each night adds partitions, and each partition is a lock for a backup, and a few for a
statement that names no night.
"""

from dataclasses import dataclass

import sqlalchemy as sa

from ml.database.connection import rows

# A value of max_locks_per_transaction is advised in steps of this.
_STEP = 64
# Advice lasts until there are so many times the partitions of today.
_GROWTH = 2


@dataclass(frozen=True)
class LockTable:
    """The server's room for locks, and the relations of schema `nightscore`.

    Attributes:
        per_transaction: the setting `max_locks_per_transaction`.
        transactions: max_connections + max_prepared_transactions.
        tables: tables and partitions.
        relations: tables, partitions and indexes.
        nights: partitions of `image`.
    """

    per_transaction: int
    transactions: int
    tables: int
    relations: int
    nights: int

    @property
    def slots(self) -> int:
        """The locks that the server has room for, of all sessions."""
        return self.per_transaction * self.transactions

    @property
    def needed(self) -> int:
        """The locks of a backup beside one statement that names no night."""
        return self.tables + self.relations

    @property
    def is_enough(self) -> bool:
        """Whether a backup and such a statement fit at once."""
        return self.slots >= self.needed

    @property
    def advised(self) -> int:
        """A value of `max_locks_per_transaction` that lasts for twice the nights."""
        return -(-_GROWTH * self.needed // (self.transactions * _STEP)) * _STEP

    @property
    def lasts_nights(self) -> int:
        """The nights for which the slots are enough, if each adds what a night has now."""
        return self.nights * self.slots // self.needed if self.needed else 0


def read(connection: sa.Connection) -> LockTable:
    """Return the state of the server; any login may ask."""
    return LockTable(**rows(connection, "database/sql/lock_table")[0])
