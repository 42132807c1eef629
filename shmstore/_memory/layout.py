"""Where does each number of a store lie?

This is the one module that knows the format. A store is a folder with four kinds of files; all
numbers are unsigned 64-bit little-endian words that lie at multiples of eight bytes, so that each
is read and written as one machine word.

index (fixed geometry, chosen at creation, sparse; grows in place)::

    word        field                 written by            meaning
    ----------  --------------------  --------------------  -------------------------------------
    0           MAGIC                 creator, once         b"shmstore"
    1           VERSION               creator, once         format version
    2           BYTE_ORDER            creator, once         0x0102030405060708
    3, 4        UUID                  creator, once         identity of the store
    5           CAPACITY              creator, once         bytes of the segment
    6           MAX_OBJECTS           creator, once         slots in the slot table
    7           MAX_CLIENTS           creator, once         rows in the client table
    8           FLAGS                 creator, once         sum of the flags below
    9           CREATED_NS            creator, once         wall clock, ns since 1970
    10          CREATOR_PID           creator, once         process id
    11          TTL_NS                creator, once         time to live of objects, 0: for ever
    12          GROUP                 creator, once         group id + 1 of a shared store, or 0
    13          GEOMETRY_CRC          creator, once         crc32 of words 0 to 12
    16          DIRTY                 lock holder           row + 1 while a change is under way
    17          DESTROYED             lock holder           1 when the store is gone
    18          NEXT_GENERATION       lock holder           first generation not given yet
    19          NEXT_SERIAL           lock holder           number of the next seat file
    20          SLOT_TOP              lock holder           slots ever used
    21          FREE_SLOT             lock holder           slot + 1, head of the free slots
    22          DOOMED_HEAD           lock holder           slot + 1, oldest doomed with an extent
    23          DOOMED_TAIL           lock holder           slot + 1, youngest of these
    24          OBJECTS               lock holder           all but FREE, WRITING, DOOMED slots
    25          NAMED                 lock holder           those of them that have a key
    26          USED                  lock holder           bytes in extents
    27          DOOMED_BYTES          lock holder           bytes in extents of DOOMED slots
    28          BUCKETS               lock holder           buckets of the key index in use
    29          NODE_TOP              lock holder           allocator nodes ever used
    30          FREE_NODE             lock holder           node + 1, head of the free nodes
    31          SEGMENT_TOP           lock holder           bytes given to the allocator
    32          LAST_NODE             lock holder           node + 1 of the extent at the top
    33          BACKED                creator, trim         bytes reserved at creation (prefault)
    34          CLIENT_TOP            lock holder           client rows ever used
    35          SLOTS_RESERVED        lock holder           bytes of the slot table with pages
    36          BUCKETS_RESERVED      lock holder           bytes of the key index with pages
    37          NODES_RESERVED        lock holder           bytes of the nodes with pages
    38          SPILLED               lock holder           SPILLED slots
    39          SPILLED_BYTES         lock holder           bytes of their files
    40          NEXT_EXPIRY_NS        lock holder           no object expires before, 0: none does
    41          EXPIRY_HAND           lock holder           slot to look at next for expired ones
    42          EVICTIONS             lock holder           objects evicted so far
    43          SPILLS                lock holder           objects spilled so far
    44          RESTORES              lock holder           objects read back so far
    45          EXPIRATIONS           lock holder           objects that have expired so far
    46          WAITERS               lock holder           waiter rows up to the last in use
    47          WAITERS_RESERVED      lock holder           bytes of the waiter rows with pages
    48          ORPHANS               lock holder           1: the dead may have left slots
    49          QUEUES                lock holder           slot + 1 of the first queue
    50 to 57    LEFT                  lock holder           words 8 to 15 of the seats that are gone
    58          PINS_COPIED           lock holder           how often pins were copied for others
    64          FIRST_LEVEL           lock holder           bitmap of non-empty size classes
    65 to 112   SECOND_LEVEL          lock holder           bitmap per size class
    128 to 895  FREE_HEADS            lock holder           node + 1, first free block of a class
    896 to 1023 EXPIRIES              lock holder           as word 40, for 1/128 of the slots each

    then, page-aligned: client table, key index (buckets), allocator nodes, slot table, waiters

flags: 1 persist   2 locked reads   4 checksum   8 zero on free   16 evict   32 spill
64 trace pins

client row (8 words)::

    0 SERIAL (0: free row)   1 PID   2 STARTED_NS   3 ATTACHED_NS   4 READONLY
    5 SPARES (slots set aside for it, and how many of them have extents << 32)
    6 ENDING (slot + 1 that it takes back or fills, without the lock)
    7 SEIZED (slots that others took from it, and bytes of their extents / 64 << 20; it has not
    noticed yet)

written by the lock holder, but for SPARES and ENDING: by the client itself

key bucket (1 word): slot + 1 of the first object whose key falls into it, or 0

allocator node (8 words)::

    0 OFFSET   1 NBYTES   2 STATUS (0 unused, 1 free, 2 used)   3 LOWER   4 UPPER
    5 PREV_FREE, of a used one 5 SLOT (slot + 1)   6 NEXT_FREE
    7 COLD (1: some of its pages may not be reserved, 2: none is)

slot (40 words, 320 bytes)::

    0     STATE         generation << 8 | state
    1     EXTENT        offset of the extent in the segment, and its check << 48
    2     NODE          node + 1 of the extent, 0: it has none in the segment
    3     CHAIN         slot + 1 of the next object in the same key bucket
    4     LINK          slot + 1, next in the list of free or of doomed slots; of a READY or
                        SPARE one 1: its owner may change its state without the lock
    5     LAST_USED     NEXT_GENERATION at the last get (stores that evict or spill)
    6     KIND          the sum of the kinds below, and CRC << 32
    7     OWNER         serial of the seat of the client that put it, or has it set aside
    8     EXTENT_NBYTES bytes of the extent, in the segment or in a file; 0: none
    9     HEADER_NBYTES bytes of the packed header, and DATA_CRC << 32
    10    DATA_NBYTES   bytes of all frames
    11, 12 DIGEST       blake2b-128 of the key
    13    CREATED_NS    wall clock at publication, ns since 1970
    14    PID           process that put it
    15    EXPIRES_NS    when it expires, ns of CLOCK_BOOTTIME; 0: never
    16 .. INLINE        192 bytes: the header, then the one small frame, as far as they fit

kinds: 1 header in the extent, at its end   2 frame in the slot   4 plain pickle   8 has a key
16 DATA_CRC counts: the crc32 of all frames that readers cannot write   32 is a queue
64 waits in a queue   128 tells how many objects of a queue a client has taken and not done

CRC is the crc32 of words 7 to 15, the packed header and the frame in the slot, begun with
(generation << 8 | kinds) ^ slot * 0x9E3779B1 ^ UUID. The check of an EXTENT are bits 48 to 63 of
(offset ^ (slot + 1) * 0x9E3779B1) * 0x9E3779B97F4A7C15 (D. Knuth, "The art of computer programming"
3, 6.4: Fibonacci hashing).

the last words of the slot of a queue; of those only 0 in a slot that tells what was taken::

    32  TAKEN     objects that were taken and are not done; in a queue: by whom is not known
    33  HEAD      slot + 1 of its first object; CHAIN leads to the next
    34  TAIL      slot + 1 of its last object
    35  WAITING   objects that wait in it
    36  NUMBER    number of the next object
    37  OPEN      sum of all TAKEN
    38  TALLIES   slot + 1 of the first slot that tells what was taken; CHAIN leads to the next

waiter row (8 words)::

    0 TOPIC   1 SERIAL (0: free row)   2 BELL   3 PREFIX (of a watcher: length + 1)
    4 LOST (changes that a watcher was not told)   5 TICKET (of this entry, by its client)

seat (one file per client)::

    0 MARK   1 SERIAL   2 CELLS (cells in use)   3 SITES (sites in use)
    8 PUTS   9 PUT_NBYTES   10 GETS   11 GOT_NBYTES   12 DELETES   13 WAITS   14 LOCK_WAITS
    15 LOCK_WAITS_NS   16 EVICTIONS   17 EXPIRATIONS   18 SPILLS   19 RESTORES
    20 KEPT (bytes of deleted objects that it keeps for its next puts)
    32 .. cells of two words: PIN (slot + 1 of a pinned object and site << 32; 0: free), SINCE
    from byte 33,554,432: sites of 256 bytes

segment-00000: the data, CAPACITY bytes; extents and frames lie at multiples of 64. Then a page::

    0 MARK   1, 2 UUID of the store
"""

from __future__ import annotations

from typing import Final

WORD: Final = 8
WORD_MASK: Final = (1 << 64) - 1
PAGE: Final = 4096

# The numbers from here on lie in shared memory. They are permanent.

MAGIC: Final = int.from_bytes(b"shmstore", "little")
SEAT_MAGIC: Final = int.from_bytes(b"shmsseat", "little")
SEGMENT_MAGIC: Final = int.from_bytes(b"shmssegm", "little")
FILE_MAGIC: Final = int.from_bytes(b"shmsfile", "little")
SEGMENT_LABEL_NBYTES: Final = 3 * WORD
FORMAT_VERSION: Final = 3
BYTE_ORDER_MARK: Final = 0x0102030405060708

W_MAGIC: Final = 0
W_VERSION: Final = 1
W_BYTE_ORDER: Final = 2
W_UUID: Final = 3
W_CAPACITY: Final = 5
W_MAX_OBJECTS: Final = 6
W_MAX_CLIENTS: Final = 7
W_FLAGS: Final = 8
W_CREATED_NS: Final = 9
W_CREATOR_PID: Final = 10
W_TTL_NS: Final = 11
W_GROUP: Final = 12
W_GEOMETRY_CRC: Final = 13

W_DIRTY: Final = 16
W_DESTROYED: Final = 17
W_NEXT_GENERATION: Final = 18
W_NEXT_SERIAL: Final = 19
W_SLOT_TOP: Final = 20
W_FREE_SLOT: Final = 21
W_DOOMED_HEAD: Final = 22
W_DOOMED_TAIL: Final = 23
W_OBJECTS: Final = 24
W_NAMED: Final = 25
W_USED: Final = 26
W_DOOMED_BYTES: Final = 27
W_BUCKETS: Final = 28
W_NODE_TOP: Final = 29
W_FREE_NODE: Final = 30
W_SEGMENT_TOP: Final = 31
W_LAST_NODE: Final = 32
W_BACKED: Final = 33
W_CLIENT_TOP: Final = 34
W_SLOTS_RESERVED: Final = 35
W_BUCKETS_RESERVED: Final = 36
W_NODES_RESERVED: Final = 37
W_SPILLED: Final = 38
W_SPILLED_BYTES: Final = 39
W_NEXT_EXPIRY_NS: Final = 40
W_EXPIRY_HAND: Final = 41
W_EVICTIONS: Final = 42
W_SPILLS: Final = 43
W_RESTORES: Final = 44
W_EXPIRATIONS: Final = 45
W_WAITERS: Final = 46
W_WAITERS_RESERVED: Final = 47
W_ORPHANS: Final = 48
W_QUEUES: Final = 49
W_LEFT: Final = 50
W_PINS_COPIED: Final = 58
W_FIRST_LEVEL: Final = 64
W_SECOND_LEVEL: Final = 65
W_FREE_HEADS: Final = 128
W_EXPIRIES: Final = 896

FLAG_PERSIST: Final = 1
FLAG_LOCKED_READS: Final = 2
FLAG_CHECKSUM: Final = 4
FLAG_ZERO_ON_FREE: Final = 8
FLAG_EVICT: Final = 16
FLAG_SPILL: Final = 32
FLAG_TRACE_PINS: Final = 64

SUPERBLOCK_NBYTES: Final = 2 * PAGE

ALIGNMENT: Final = 64
SECOND_LEVEL_LOG2: Final = 4
SECOND_LEVELS: Final = 1 << SECOND_LEVEL_LOG2
EXPIRY_GROUPS: Final = 128
FIRST_LEVELS: Final = 48
LINEAR_LIMIT: Final = ALIGNMENT * SECOND_LEVELS
LINEAR_LIMIT_LOG2: Final = LINEAR_LIMIT.bit_length() - 1

CLIENT_WORDS: Final = 8
C_SERIAL: Final = 0
C_PID: Final = 1
C_STARTED_NS: Final = 2
C_ATTACHED_NS: Final = 3
C_READONLY: Final = 4
C_SPARES: Final = 5
C_ENDING: Final = 6
C_SEIZED: Final = 7
SEIZED_SHIFT: Final = 20
SEIZED_MASK: Final = (1 << SEIZED_SHIFT) - 1
SPARE_SHIFT: Final = 32
SPARE_MASK: Final = (1 << SPARE_SHIFT) - 1

NODE_WORDS: Final = 8
N_OFFSET: Final = 0
N_NBYTES: Final = 1
N_STATUS: Final = 2
N_LOWER: Final = 3
N_UPPER: Final = 4
N_PREV_FREE: Final = 5
N_SLOT: Final = N_PREV_FREE
N_NEXT_FREE: Final = 6
N_COLD: Final = 7
NODE_UNUSED: Final = 0
NODE_FREE: Final = 1
NODE_USED: Final = 2
WARM: Final = 0
PARTLY_COLD: Final = 1
COLD: Final = 2

SLOT_WORDS: Final = 40
SLOT_NBYTES: Final = SLOT_WORDS * WORD
S_STATE: Final = 0
S_EXTENT: Final = 1
S_NODE: Final = 2
S_CHAIN: Final = 3
S_LINK: Final = 4
LINK_OWN: Final = 1
S_LAST_USED: Final = 5
S_KIND: Final = 6
S_OWNER: Final = 7
S_EXTENT_NBYTES: Final = 8
S_HEADER_NBYTES: Final = 9
S_DATA_NBYTES: Final = 10
S_DIGEST: Final = 11
S_CREATED_NS: Final = 13
S_PID: Final = 14
S_EXPIRES_NS: Final = 15
S_INLINE: Final = 16
INLINE_OFFSET: Final = S_INLINE * WORD
INLINE_NBYTES: Final = SLOT_NBYTES - INLINE_OFFSET

KIND_HEADER_IN_EXTENT: Final = 1
KIND_INLINE: Final = 2
KIND_PLAIN: Final = 4
KIND_NAMED: Final = 8
KIND_DATA_CRC: Final = 16
KIND_QUEUE: Final = 32
KIND_QUEUED: Final = 64
KIND_TALLY: Final = 128
KINDS_OF_QUEUES: Final = KIND_QUEUE | KIND_QUEUED | KIND_TALLY
KINDS: Final = 0xFF
S_TAKEN: Final = 32
S_HEAD: Final = 33
S_TAIL: Final = 34
S_WAITING: Final = 35
S_NUMBER: Final = 36
S_OPEN: Final = 37
S_TALLIES: Final = 38
QUEUE_INLINE_NBYTES: Final = (S_TAKEN - S_INLINE) * WORD
CRC_SHIFT: Final = 32
CRC_MASK: Final = (1 << 32) - 1

EXTENT_SHIFT: Final = 48
EXTENT_MASK: Final = (1 << EXTENT_SHIFT) - 1
FIBONACCI: Final = 0x9E3779B97F4A7C15
FIBONACCI_32: Final = 0x9E3779B1

WAITER_WORDS: Final = 8
WAITER_NBYTES: Final = WAITER_WORDS * WORD
WAIT_TOPIC: Final = 0
WAIT_SERIAL: Final = 1
WAIT_BELL: Final = 2
WAIT_PREFIX: Final = 3
WAIT_LOST: Final = 4
WAIT_TICKET: Final = 5
FEWEST_WAITERS: Final = 1024
WAITERS_PER_CLIENT: Final = 4

SEAT_MARK: Final = 0
SEAT_SERIAL: Final = 1
SEAT_CELLS: Final = 2
SEAT_SITES: Final = 3
SEAT_PUTS: Final = 8
SEAT_PUT_NBYTES: Final = 9
SEAT_GETS: Final = 10
SEAT_GOT_NBYTES: Final = 11
SEAT_DELETES: Final = 12
SEAT_WAITS: Final = 13
SEAT_LOCK_WAITS: Final = 14
SEAT_LOCK_WAITS_NS: Final = 15
SEAT_EVICTIONS: Final = 16
SEAT_EXPIRATIONS: Final = 17
SEAT_SPILLS: Final = 18
SEAT_RESTORES: Final = 19
SEAT_KEPT: Final = 20
SEAT_FIRST_CELL: Final = 32
COUNTS_END: Final = SEAT_RESTORES + 1
LEFT_END: Final = SEAT_LOCK_WAITS_NS + 1
CELL_WORDS: Final = 2
CELL_NBYTES: Final = CELL_WORDS * WORD
CELL_SINCE: Final = 1
FIRST_CELL: Final = SEAT_FIRST_CELL // CELL_WORDS
MAX_CELLS: Final = (1 << 21) - FIRST_CELL
PIN_SITE_SHIFT: Final = 32
SITES_OFFSET: Final = (FIRST_CELL + MAX_CELLS) * CELL_NBYTES
SITE_NBYTES: Final = 256
MAX_SITES: Final = 4096
SEAT_NBYTES: Final = SITES_OFFSET + MAX_SITES * SITE_NBYTES

MAX_CAPACITY: Final = 1 << 47
MAX_OBJECTS: Final = 1 << 31
MAX_CLIENTS: Final = 1 << 16

# Proofs of the relations between these numbers.
assert W_SECOND_LEVEL + FIRST_LEVELS <= W_FREE_HEADS
assert W_FREE_HEADS + FIRST_LEVELS * SECOND_LEVELS <= W_EXPIRIES
assert (W_EXPIRIES + EXPIRY_GROUPS) * WORD <= SUPERBLOCK_NBYTES
assert S_EXPIRES_NS < S_INLINE < S_TAKEN < S_TALLIES < SLOT_WORDS
assert MAX_CAPACITY <= EXTENT_MASK
assert N_COLD < NODE_WORDS
assert C_SEIZED < CLIENT_WORDS
assert WAIT_TICKET < WAITER_WORDS
assert FEWEST_WAITERS * WAITER_NBYTES % PAGE == 0
assert MAX_CAPACITY.bit_length() - LINEAR_LIMIT_LOG2 < FIRST_LEVELS
assert PAGE % ALIGNMENT == 0
assert FIRST_CELL * CELL_WORDS == SEAT_FIRST_CELL
assert COUNTS_END <= SEAT_KEPT < SEAT_FIRST_CELL
assert W_LEFT + LEFT_END - SEAT_PUTS <= W_PINS_COPIED < W_FIRST_LEVEL
assert MAX_OBJECTS < 1 << PIN_SITE_SHIFT
assert SITES_OFFSET == 33_554_432


def align(nbytes: int, boundary: int = ALIGNMENT) -> int:
    """Return `nbytes` rounded up to a multiple of `boundary` (a power of two)."""
    return (nbytes + boundary - 1) & -boundary


def first_crc(store: int, slot: int, word: int, kind: int) -> int:
    """Return what the checksum over a slot begins with: a copy elsewhere does not agree.

    `store` is the UUID of its store, or the lower half of that; `word` is its state word.
    """
    return ((word & -256 | kind) ^ slot * FIBONACCI_32 ^ store) & CRC_MASK


def extent_check(offset: int, slot: int) -> int:
    """Return what the upper bits of an EXTENT word say of the lower ones."""
    return ((offset ^ (slot + 1) * FIBONACCI_32) * FIBONACCI >> EXTENT_SHIFT) & 0xFFFF


class Geometry:
    """Where do the tables of one index lie? Word indexes that follow from the sizes.

    Parameters
    ----------
    max_objects, max_clients
        Rows of the slot and client tables.
    """

    __slots__ = (
        "buckets",
        "clients",
        "expiry_group",
        "max_buckets",
        "max_clients",
        "max_nodes",
        "max_objects",
        "max_waiters",
        "nbytes",
        "nodes",
        "slots",
        "waiters",
    )

    def __init__(self, max_objects: int, max_clients: int) -> None:
        self.max_objects = max_objects
        self.max_clients = max_clients
        self.max_buckets = 1 << max(9, (max_objects - 1).bit_length())
        self.max_nodes = 2 * max_objects + 1
        self.expiry_group = -(-max_objects // EXPIRY_GROUPS)
        self.max_waiters = max(FEWEST_WAITERS, WAITERS_PER_CLIENT * max_clients)
        offset = SUPERBLOCK_NBYTES
        self.clients = offset // WORD
        offset = align(offset + max_clients * CLIENT_WORDS * WORD, PAGE)
        self.buckets = offset // WORD
        offset = align(offset + self.max_buckets * WORD, PAGE)
        self.nodes = offset // WORD
        offset = align(offset + self.max_nodes * NODE_WORDS * WORD, PAGE)
        self.slots = offset // WORD
        offset = align(offset + max_objects * SLOT_NBYTES, PAGE)
        self.waiters = offset // WORD
        self.nbytes = align(offset + self.max_waiters * WAITER_NBYTES, PAGE)
