// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// Marks what requests write to tracked disks, twice: when a request is issued to its device and
// when it completes. The other half of the story is in ../src/bpf.rs.
//
// Build: bpf/build.sh. The kernel refuses non-GPL programs that read its structures by type, hence
// the licence above for this one file.
//
// Needs Linux 5.12 (atomic OR) and its BTF. Loops stand in global functions with scalar arguments:
// the verifier checks those once each; as static ones it runs out of patience ("sequence of 8193
// jumps is too complex").

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
// A map's definition is a struct of pointers whose types carry the numbers.
#define __uint(name, val) int(*name)[val]
#define __type(name, val) val *name

enum { BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_F_MMAPABLE = 1 << 10 };

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
#ifdef FAULTS
static u32 (*bpf_get_prandom_u32)(void) = (void *)7;
#endif

enum { FIELD_EXISTS = 2 };

// The fields we read, by name: the loader looks up where the running kernel has them.
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct gendisk {
	int major;
	int first_minor;
};
struct request_queue {
	struct gendisk *disk;		// 5.15 and later
};
struct bvec_iter {
	u64 bi_sector;
	u32 bi_size;
} __attribute__((packed));
struct bio {
	struct bio *bi_next;
	struct bvec_iter bi_iter;
};
enum mq_rq_state { MQ_RQ_IDLE = 0 };
struct request {
	struct request_queue *q;
	u32 cmd_flags;
	u32 __data_len;
	u64 __sector;
	struct bio *bio;
	enum mq_rq_state state;
};
struct request___old {
	struct gendisk *rq_disk;	// up to 5.16
};
#pragma clang attribute pop

enum { OP_MASK = 0xff, OP_DISCARD = 3, OP_SECURE_ERASE = 5, OP_DRIVER_PRIVATE = 32 };

// One disk, as the agent laid it out. Region: `words` words with a bit per chunk, then coarse
// words with a bit per 4096 chunks.
struct disk {
	u64 slot;			// in `counters`
	u64 shift;			// of a chunk's size in bytes
	u64 chunks;
	u64 words;
	u64 issued;			// the word where its region of issue marks begins
	u64 completed;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, u32);		// major << 20 | minor
	__type(value, struct disk);
} disks SEC(".maps");

// What happened to a disk since the start; sectors of 512 bytes.
struct volume {
	u64 written;
	u64 discarded;
	u64 passthrough;		// requests
};
struct counters {
	struct volume completed;
	struct volume issued;
	struct volume requeued;
	u64 outside;			// requests that do not fit the map
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 17);	// the last one: requests whose disk is not known
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

enum { NO_DISK = 16 };

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);		// set by the agent
	__type(key, u32);
	__type(value, u64);
} marks SEC(".maps");

#ifdef FAULTS
// How many of 256 events are dropped, as if the program had not been called.
const volatile u32 drop_completions = 0;
const volatile u32 drop_issues = 0;
#define DROP(of_256) ((bpf_get_prandom_u32() & 255) < (of_256))
#else
#define DROP(of_256) 0
#endif

static __always_inline int mark_word(u64 index, u64 bits)
{
	u32 key = index;
	u64 *word = bpf_map_lookup_elem(&marks, &key);

	if (!word)
		return -1;
	// The write has landed (or was marked as issued) before this look: whoever cleared the bits
	// earlier reads the disk later.
	if ((*word & bits) != bits)
		__sync_fetch_and_or(word, bits);
	return 0;
}

enum { RUN_WORDS = 130, COARSE_SHIFT = 12, COARSE_CHUNKS = 1 << COARSE_SHIFT };

// Sets the bits from `first` to `last` counted from word `base`: at most 8192 of them.
__noinline int mark_run(u64 base, u64 first, u64 last)
{
	u64 word = base + (first >> 6), end = base + (last >> 6);
	u64 head = ~0ULL << (first & 63), tail = ~0ULL >> (63 - (last & 63));

	if (word == end)
		return mark_word(word, head & tail);
	if (mark_word(word, head))
		return -1;
	for (u32 i = 1; i < RUN_WORDS; i++) {
		if (word + i >= end)
			return mark_word(end, tail);
		if (mark_word(word + i, ~0ULL))
			return -1;
	}
	return -1;
}

// The same for any length: the middle of a long run goes to the coarse words behind `words`.
__noinline int mark_long_run(u64 base, u64 words, u64 first, u64 last)
{
	u64 up = (first + COARSE_CHUNKS - 1) & ~(u64)(COARSE_CHUNKS - 1);
	u64 down = (last + 1) & ~(u64)(COARSE_CHUNKS - 1);
	int bad = 0;

	if (first < up)
		bad |= mark_run(base, first, up - 1);
	if (down <= last)
		bad |= mark_run(base, down, last);
	if (up < down)
		bad |= mark_run(base + words, up >> COARSE_SHIFT, (down >> COARSE_SHIFT) - 1);
	return bad;
}

static __always_inline int mark(const struct disk *disk, u64 base, u64 sector, u64 bytes)
{
	u64 first, last;

	if (!bytes)
		return 0;
	first = (sector << 9) >> disk->shift;
	last = ((sector << 9) + bytes - 1) >> disk->shift;
	if (last >= disk->chunks || first > last)
		return -1;
	if (last - first < 2 * COARSE_CHUNKS)
		return mark_run(base, first, last);
	return mark_long_run(base, disk->words, first, last);
}

// A discard may hold bios that do not touch one another: up to 256 (NVMe's limit).
static __always_inline int mark_bios(const struct disk *disk, u64 base, struct request *rq)
{
	struct bio *bio = rq->bio;

	for (u32 i = 0; i < 256; i++) {
		if (!bio)
			return 0;
		if (mark(disk, base, bio->bi_iter.bi_sector, bio->bi_iter.bi_size))
			return -1;
		bio = bio->bi_next;
	}
	return bio ? -1 : 0;
}

static __always_inline struct gendisk *disk_of(struct request *rq)
{
	struct request___old *old = (void *)rq;

	if (__builtin_preserve_field_info(rq->q->disk, FIELD_EXISTS))
		return rq->q->disk;
	return old->rq_disk;
}

static __always_inline struct counters *counters_of(u64 slot)
{
	u32 key = slot;

	return bpf_map_lookup_elem(&counters, &key);
}

// Whether it may change the disk.
static __always_inline int may_write(struct request *rq, u32 op)
{
	// op_is_write(): the lowest bit, since 4.8.
	if (op & 1)
		return 1;
	// A passthrough command that carries no data is called a read, whatever it does: WRITE SAME
	// without a buffer, FORMAT UNIT, NVMe's Write Zeroes. Its opcode lies behind the request, in
	// a place that depends on driver and kernel, so harmless ones (TEST UNIT READY of multipathd,
	// smartd) are doubts as well, and cost a rescan.
	return op >= OP_DRIVER_PRIVATE && !rq->__data_len;
}

// Looks up a write's disk and counters. 0 for what is no write or on no tracked disk.
static __always_inline int look_up(struct request *rq, u32 op, struct disk **disk,
				   struct counters **count)
{
	struct gendisk *gendisk;
	u32 device;

	if (!may_write(rq, op))
		return 0;
	gendisk = disk_of(rq);
	if (!gendisk) {
		// Without data and without a disk: an NVMe controller is asked for its temperature, a
		// CD-ROM drive (5.12 to 5.14) whether it is ready, every few seconds. Nothing could
		// ever be sealed if that were a doubt, hence Format NVM and Sanitize are not seen.
		if (!(op & 1))
			return 0;
		*disk = 0;
		*count = counters_of(NO_DISK);
		return *count != 0;
	}
	device = (u32)gendisk->major << 20 | (u32)gendisk->first_minor;
	*disk = bpf_map_lookup_elem(&disks, &device);
	if (!*disk)
		return 0;
	*count = counters_of((*disk)->slot);
	return *count != 0;
}

// The count comes before the marks: an agent that took a mark sees the count move.
static __always_inline void count_volume(struct volume *volume, u32 op, u64 bytes)
{
	if (op >= OP_DRIVER_PRIVATE)
		__sync_fetch_and_add(&volume->passthrough, 1);
	else if (op == OP_DISCARD)
		__sync_fetch_and_add(&volume->discarded, bytes >> 9);
	else
		__sync_fetch_and_add(&volume->written, bytes >> 9);
}

static __always_inline void count_and_mark(struct request *rq, u32 op, struct disk *disk, u64 base,
					   struct counters *count, u64 bytes)
{
	int bad;

	// A passthrough command carries no range that the block layer knows.
	if (op >= OP_DRIVER_PRIVATE)
		return;
	if (op == OP_DISCARD || op == OP_SECURE_ERASE)
		bad = mark_bios(disk, base, rq);
	else
		bad = mark(disk, base, rq->__sector, bytes);
	if (bad)
		__sync_fetch_and_add(&count->outside, 1);
}

SEC("tp_btf/block_rq_issue")
int rq_issued(u64 *ctx)
{
	struct request *rq = (void *)ctx[0];
	u32 op = rq->cmd_flags & OP_MASK;
	struct counters *count;
	struct disk *disk;

	if (!look_up(rq, op, &disk, &count) || DROP(drop_issues))
		return 0;
	count_volume(&count->issued, op, rq->__data_len);
	if (disk)
		count_and_mark(rq, op, disk, disk->issued, count, rq->__data_len);
	return 0;
}

// Fires before the request moves on to what is left of it: [__sector, + bytes) has landed, and
// whoever wrote it was not told yet.
SEC("tp_btf/block_rq_complete")
int rq_completed(u64 *ctx)
{
	struct request *rq = (void *)ctx[0];
	u32 op = rq->cmd_flags & OP_MASK;
	u64 bytes = (u32)ctx[2];
	struct counters *count;
	struct disk *disk;

	if (!look_up(rq, op, &disk, &count) || DROP(drop_completions))
		return 0;
	count_volume(&count->completed, op, bytes);
	if (disk)
		count_and_mark(rq, op, disk, disk->completed, count, bytes);
	return 0;
}

// A request that goes back into its queue will be issued once more: taken off the audit's sum. A
// driver may also put back what it had not started; that was not counted.
SEC("tp_btf/block_rq_requeue")
int rq_requeued(u64 *ctx)
{
	struct request *rq = (void *)ctx[0];
	u32 op = rq->cmd_flags & OP_MASK;
	struct counters *count;
	struct disk *disk;

	if (rq->state == MQ_RQ_IDLE || !look_up(rq, op, &disk, &count))
		return 0;
	count_volume(&count->requeued, op, rq->__data_len);
	return 0;
}

char licence[] SEC("license") = "Dual MIT/GPL";
