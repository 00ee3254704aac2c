# An index of what is on the disk, in the heap, and then so many MiB a second of it changed: entries of the
# index, and records in a pool, as a database has them.
# usage: work.py RATE [FILE with another RATE] [MiB to read]
import os, random, re, struct, sys, time

rate = float(sys.argv[1])
random.seed(1)
index, texts, total = {}, [], 0
for root, _, names in os.walk("/usr"):
    for name in names:
        path = os.path.join(root, name)
        try:
            if os.path.islink(path) or os.path.getsize(path) > 3 << 20:
                continue
            with open(path, "rb") as file:
                data = file.read(200000)
        except OSError:
            continue
        words = re.findall(rb"[A-Za-z_]{4,}", data)
        for word in words[:400]:
            index.setdefault(word, []).append(path)
        texts.append({"path": path, "size": len(data), "data": data[:2048], "seen": 0, "score": 0.0})
        total += len(data)
    if total > (int(sys.argv[3]) if len(sys.argv) > 3 else 90) << 20:
        break

pool = bytearray(64 << 20)
at = 0
while at < len(pool) - 4096:
    text = random.choice(texts)
    record = struct.pack("<QQd", at, len(text["data"]), random.random()) + text["data"]
    pool[at:at + len(record)] = record
    at += len(record)
print("ready", flush=True)
words, began, done, looked = list(index), time.time(), 0, 0

def wanted():
    try:
        with open(sys.argv[2]) as file:
            return float(file.read())
    except (IndexError, OSError, ValueError):
        return rate

while True:
    if time.time() - looked > 1:
        looked = time.time()
        if wanted() != rate:
            rate, began, done = wanted(), looked, 0
    for _ in range(20):
        text = random.choice(texts)
        text["seen"] += 1
        text["score"] = random.random() * text["size"]
        entry = index[random.choice(words)]
        entry.append(entry.pop(0))
        done += 3 * 4096
        if rate > 1:
            at = random.randrange(len(pool) - 4096)
            record = struct.pack("<QQd", at, text["seen"], text["score"]) + text["data"]
            pool[at:at + len(record)] = record
            done += 4096
    ahead = done / (rate * (1 << 20)) - (time.time() - began)
    if ahead > 0:
        time.sleep(ahead)
