//! Writes the journals of all migrations of this process, on a thread of its own: those who wait for a
//! disk must not hold up the others, and what comes while it is written is on the disk with one sync.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rusqlite::{Connection, Transaction, params};
use tokio::sync::oneshot;
use units::MigrationId;

use crate::StoreError;

/// Records in one transaction. It bounds how long the first of them waits for the last.
const TOGETHER_MAX: usize = 256;

pub(crate) struct Writer {
    lines: Sender<Line>,
}

struct Line {
    id: MigrationId,
    at_ms: i64,
    body: String,
    written: oneshot::Sender<Written>,
}

/// Those that fail together fail for one reason.
type Written = Result<(), Arc<StoreError>>;

impl Writer {
    /// Ends when it is dropped.
    pub(crate) fn begin(database: Connection) -> Result<Self, StoreError> {
        let (lines, waiting) = channel();
        let thread = thread::Builder::new().name("journal".to_owned());
        thread.spawn(move || write_all(database, &waiting)).map_err(StoreError::Writer)?;
        Ok(Self { lines })
    }

    /// Returns once it is on the disk. If whoever asked does not wait for that, it is written all the
    /// same.
    pub(crate) async fn write(&self, id: MigrationId, at_ms: i64, body: String) -> Written {
        let gone = || Arc::new(StoreError::WriterGone);
        let (written, answer) = oneshot::channel();
        self.lines.send(Line { id, at_ms, body, written }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn write_all(mut database: Connection, waiting: &Receiver<Line>) {
    while let Ok(first) = waiting.recv() {
        let mut lines = vec![first];
        lines.extend(waiting.try_iter().take(TOGETHER_MAX - 1));
        let written = write(&mut database, &lines);
        for (line, written) in lines.into_iter().zip(written) {
            // Whoever waited may have been killed.
            drop(line.written.send(written));
        }
    }
}

/// What became of each, in one transaction.
fn write(database: &mut Connection, lines: &[Line]) -> Vec<Written> {
    write_together(database, lines).unwrap_or_else(|error| {
        let error = shared(error);
        lines.iter().map(|_| Err(Arc::clone(&error))).collect()
    })
}

fn write_together(database: &mut Connection, lines: &[Line]) -> rusqlite::Result<Vec<Written>> {
    let all = database.transaction()?;
    // One that is refused is no reason against the others.
    let written = lines.iter().map(|line| insert(&all, line).map_err(shared)).collect();
    all.commit()?;
    Ok(written)
}

fn insert(all: &Transaction<'_>, line: &Line) -> rusqlite::Result<()> {
    let Line { id, at_ms, body, .. } = line;
    let sql = "INSERT INTO records VALUES (?1, (SELECT coalesce(max(seq), 0) + 1 FROM records WHERE migration = ?1), ?2, ?3)";
    all.prepare_cached(sql)?.execute(params![id.as_str(), at_ms, body])?;
    Ok(())
}

fn shared(error: rusqlite::Error) -> Arc<StoreError> {
    Arc::new(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let database = Connection::open_in_memory().unwrap();
        let tables = format!("PRAGMA foreign_keys=ON; {}", crate::TABLES);
        database.execute_batch(&tables).unwrap();
        let known = "INSERT INTO migrations VALUES (?1, 'web1', 0, '', '')";
        for id in ["web1-1", "web2-1"] {
            database.execute(known, [id]).unwrap();
        }
        database
    }

    fn line(id: &str, body: &str) -> Line {
        let (written, _) = oneshot::channel();
        Line { id: id.parse().unwrap(), at_ms: 0, body: body.to_owned(), written }
    }

    #[test]
    fn records_of_several_migrations_are_written_together_each_in_its_order() {
        let mut database = database();
        let lines = [("web1-1", "a"), ("web2-1", "b"), ("web1-1", "c"), ("web1-1", "d")];
        let written = write(&mut database, &lines.map(|(id, body)| line(id, body)));
        assert!(written.iter().all(Result::is_ok));
        let mut query =
            database.prepare("SELECT body FROM records WHERE migration = ?1 ORDER BY seq").unwrap();
        let mut of = |id: &str| -> Vec<String> {
            query.query_map([id], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        assert_eq!([of("web1-1"), of("web2-1")], [vec!["a", "c", "d"], vec!["b"]]);
    }

    #[test]
    fn one_that_cannot_be_written_does_not_take_the_others_with_it() {
        let mut database = database();
        let written = write(&mut database, &[line("unknown-1", "a"), line("web1-1", "b")]);
        assert!(written[0].is_err() && written[1].is_ok());
        let count: i64 =
            database.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn nothing_is_taken_for_written_that_is_not_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let database = Connection::open(&path).unwrap();
        let tables = "PRAGMA foreign_keys=ON; PRAGMA busy_timeout=0;";
        database.execute_batch(&format!("{tables} {}", crate::TABLES)).unwrap();
        database
            .execute("INSERT INTO migrations VALUES ('web1-1', 'web1', 0, '', '')", [])
            .unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let writer = Writer::begin(database).unwrap();
        let write = || writer.write("web1-1".parse().unwrap(), 0, "a".to_owned());
        assert!(write().await.is_err(), "written beside another's transaction");
        other.execute_batch("COMMIT").unwrap();
        assert!(write().await.is_ok());
        let count = other.query_row("SELECT count(*) FROM records", [], |row| row.get(0));
        assert_eq!(count, Ok(1_i64));
    }
}
