//! The coordinator's state directory: SQLite for what is asked about, a lock so that one
//! coordinator acts at a time.
//!
//! ```text
//! STATE/lock            held while a verb acts; readers do not take it
//! STATE/causeway.db     sites, migrations, their journals
//! STATE/install.key     names this installation and signs receipts; 0600
//! STATE/install.name    the name of a lost one whose place it took
//! STATE/keys/site-SITE.key  signs what a site's role says; 0600
//! STATE/keys/site-SITE.pub  of a site that could not be asked for its key yet
//! STATE/keys/move-ID.key  the coordinator's key of one migration; 0600
//! STATE/ledger/SITE/VM/  the site roles' ledgers (crate `journal`), and what undoes fences
//! STATE/appliance/      the helper's kernel and initramfs
//! STATE/receipts/ID.json
//! ```

mod login;
mod sites;
mod writer;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use engine::{JournalError, Record};
use plan::Plan;
use rusqlite::{Connection, OptionalExtension, params};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use units::MigrationId;

pub use login::GuestLogin;
pub use sites::{HostLogin, SiteConfig};
use writer::Writer;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot use the state directory {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        cause: std::io::Error,
    },
    #[error("another causeway is acting with the state directory {}", path.display())]
    Locked { path: PathBuf },
    #[error("the state database")]
    Database(#[from] rusqlite::Error),
    #[error("the state database holds what this version cannot read: {what}")]
    Content {
        what: String,
        #[source]
        cause: serde_json::Error,
    },
    #[error("the state database is of version {found}; this causeway knows up to {SCHEMA}")]
    Newer { found: i64 },
    #[error("a migration {0} exists already")]
    Exists(MigrationId),
    #[error("what writes journals cannot be started")]
    Writer(#[source] std::io::Error),
    #[error("what writes journals has ended")]
    WriterGone,
}

impl StoreError {
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Directory { .. } => {
                Some("name one that you can write with --state-dir or CAUSEWAY_STATE".to_owned())
            }
            Self::Locked { .. } => Some(
                "wait for it, or end it with Ctrl-C where it runs; `causeway status` works meanwhile, and `causeway switchover` releases one that holds".to_owned(),
            ),
            Self::Newer { .. } => Some("use the newer causeway".to_owned()),
            Self::Database(_)
            | Self::Content { .. }
            | Self::Exists(_)
            | Self::Writer(_)
            | Self::WriterGone => None,
        }
    }
}

/// The version of the database's tables.
const SCHEMA: i64 = 1;

const TABLES: &str = "
CREATE TABLE sites (name TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE migrations (
    id TEXT PRIMARY KEY, vm TEXT NOT NULL, created_ms INTEGER NOT NULL,
    plan TEXT NOT NULL, login TEXT NOT NULL
) STRICT;
CREATE TABLE records (
    migration TEXT NOT NULL REFERENCES migrations(id), seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (migration, seq)
) STRICT;
CREATE TABLE released (migration TEXT PRIMARY KEY REFERENCES migrations(id), at_ms INTEGER NOT NULL) STRICT;
";

/// An open state directory.
#[derive(Clone)]
pub struct Store {
    path: PathBuf,
    database: Arc<Mutex<Connection>>,
    /// Begun with the first record.
    writer: Arc<OnceLock<Writer>>,
}

/// Longer than a look at the lock takes.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 5;

/// Held while a verb acts.
pub struct Lock {
    _file: File,
}

/// A migration as the database has it.
#[derive(Clone)]
pub struct Stored {
    pub plan: Plan,
    pub login: GuestLogin,
    pub created_ms: i64,
    pub records: Vec<(i64, Record)>,
}

impl Store {
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let directory = |cause| StoreError::Directory { path: path.to_owned(), cause };
        for folder in ["", "keys", "ledger", "receipts"] {
            let folder = path.join(folder);
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(directory)?;
        }
        let database = connect(path)?;
        let found: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > SCHEMA {
            return Err(StoreError::Newer { found });
        }
        if found == 0 {
            database.execute_batch(&format!(
                "BEGIN IMMEDIATE; {} PRAGMA user_version={SCHEMA}; COMMIT;",
                TABLES.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")
            ))?;
        }
        Ok(Self {
            path: path.to_owned(),
            database: Arc::new(Mutex::new(database)),
            writer: Arc::default(),
        })
    }

    /// Takes the lock or says who has it. Whoever only looks whether it is held has it for a moment.
    pub fn lock(&self) -> Result<Lock, StoreError> {
        for _ in 0..LOOKS {
            match self.try_lock() {
                Err(StoreError::Locked { .. }) => std::thread::sleep(LOOK),
                other => return other,
            }
        }
        self.try_lock()
    }

    fn try_lock(&self) -> Result<Lock, StoreError> {
        let path = self.path.join("lock");
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|cause| StoreError::Directory { path: path.clone(), cause })?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Locked { path: self.path.clone() })?;
        Ok(Lock { _file: file })
    }

    /// Does somebody act with it right now?
    pub fn is_acted_with(&self) -> bool {
        matches!(self.try_lock(), Err(StoreError::Locked { .. }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        // A panic in another holder left the connection itself usable.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put_site(&self, site: &SiteConfig) -> Result<(), StoreError> {
        let body = encode("a site", site)?;
        let sql = "INSERT INTO sites VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET body = ?2";
        self.database().execute(sql, params![site.name.as_str(), body])?;
        Ok(())
    }

    pub fn remove_site(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.database().execute("DELETE FROM sites WHERE name = ?1", [name])? > 0)
    }

    pub fn sites(&self) -> Result<Vec<SiteConfig>, StoreError> {
        let database = self.database();
        let mut query = database.prepare("SELECT body FROM sites ORDER BY name")?;
        let bodies: Vec<String> =
            query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        bodies.iter().map(|body| decode("a site", body)).collect()
    }

    pub fn create_migration(
        &self,
        plan: &Plan,
        login: &GuestLogin,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let (plan_body, login_body) = (encode("a plan", plan)?, encode("a login", login)?);
        let sql = "INSERT INTO migrations VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
        let row = params![plan.id.as_str(), plan.vm.name, now_ms, plan_body, login_body];
        match self.database().execute(sql, row)? {
            0 => Err(StoreError::Exists(plan.id.clone())),
            _ => Ok(()),
        }
    }

    /// Puts a migration in place, or its journal, as the ledgers imply them.
    pub fn rebuild_migration(&self, stored: &Stored) -> Result<(), StoreError> {
        let Stored { plan, login, created_ms, records } = stored;
        let id = plan.id.as_str();
        let (plan_body, login_body) = (encode("a plan", plan)?, encode("a login", login)?);
        let mut database = self.database();
        let all = database.transaction()?;
        let sql = "INSERT INTO migrations VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING";
        all.execute(sql, params![id, plan.vm.name, created_ms, plan_body, login_body])?;
        all.execute("DELETE FROM records WHERE migration = ?1", [id])?;
        for (seq, (at_ms, record)) in (1_i64..).zip(records) {
            let row = params![id, seq, at_ms, encode("a journal record", record)?];
            all.execute("INSERT INTO records VALUES (?1, ?2, ?3, ?4)", row)?;
        }
        all.commit()?;
        Ok(())
    }

    /// Replaces the options of a stopped migration; sites, disks and networks stay.
    pub fn update_plan(&self, plan: &Plan, login: &GuestLogin) -> Result<(), StoreError> {
        let (plan_body, login_body) = (encode("a plan", plan)?, encode("a login", login)?);
        let sql = "UPDATE migrations SET plan = ?2, login = ?3 WHERE id = ?1";
        self.database().execute(sql, params![plan.id.as_str(), plan_body, login_body])?;
        Ok(())
    }

    pub fn migration_ids(&self) -> Result<Vec<String>, StoreError> {
        let database = self.database();
        let mut query = database.prepare("SELECT id FROM migrations ORDER BY created_ms, id")?;
        Ok(query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    /// Those of VMs of this name, in their order.
    pub fn ids_of_vm(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let database = self.database();
        let sql = "SELECT id FROM migrations WHERE vm = ?1 ORDER BY created_ms, id";
        let mut query = database.prepare(sql)?;
        Ok(query.query_map([name], |row| row.get(0))?.collect::<Result<_, _>>()?)
    }

    pub fn migration(&self, id: &str) -> Result<Option<Stored>, StoreError> {
        let database = self.database();
        let sql = "SELECT plan, login, created_ms FROM migrations WHERE id = ?1";
        let row = database
            .query_row(sql, [id], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
            })
            .optional()?;
        let Some((plan, login, created_ms)) = row else { return Ok(None) };
        let mut query = database
            .prepare("SELECT at_ms, body FROM records WHERE migration = ?1 ORDER BY seq")?;
        let rows: Vec<(i64, String)> = query
            .query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let records = rows
            .iter()
            .map(|(at_ms, body)| Ok((*at_ms, decode("a journal record", body)?)))
            .collect::<Result<_, StoreError>>()?;
        Ok(Some(Stored {
            plan: decode("a plan", &plan)?,
            login: decode("a login", &login)?,
            created_ms,
            records,
        }))
    }

    /// Returns once the record is on the disk.
    async fn append(&self, id: &MigrationId, record: &Record) -> Result<(), Arc<StoreError>> {
        let body = encode("a journal record", record)?;
        self.writer()?.write(id.clone(), now_ms(), body).await
    }

    fn writer(&self) -> Result<&Writer, StoreError> {
        if let Some(writer) = self.writer.get() {
            return Ok(writer);
        }
        // Of two that are begun at once one ends again.
        let writer = Writer::begin(connect(&self.path)?)?;
        Ok(self.writer.get_or_init(|| writer))
    }

    pub fn release(&self, id: &MigrationId, now_ms: i64) -> Result<(), StoreError> {
        let sql = "INSERT INTO released VALUES (?1, ?2) ON CONFLICT DO NOTHING";
        self.database().execute(sql, params![id.as_str(), now_ms])?;
        Ok(())
    }

    pub fn is_released(&self, id: &MigrationId) -> Result<bool, StoreError> {
        let sql = "SELECT count(*) FROM released WHERE migration = ?1";
        let count: i64 = self.database().query_row(sql, [id.as_str()], |row| row.get(0))?;
        Ok(count > 0)
    }

    /// Writes a private file and has it on the disk, with its name, before returning.
    pub fn write_private(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        let path = self.path.join(name);
        let error = |cause| StoreError::Directory { path: path.clone(), cause };
        let temporary = path.with_extension("new");
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(error)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(error)?;
        std::fs::rename(&temporary, &path).map_err(error)?;
        let folder = path.parent().unwrap_or(&self.path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(error)?;
        Ok(path)
    }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let database = Connection::open(path.join("causeway.db"))?;
    // FULL: a record is on the disk when the call returns, also after a power cut.
    database.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA busy_timeout=10000;",
    )?;
    Ok(database)
}

/// The wall clock, milliseconds since 1970. For people and receipts; no decision rests on it.
fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// The journal of one migration.
pub struct MigrationJournal {
    pub store: Store,
    pub id: MigrationId,
}

#[async_trait]
impl engine::Journal for MigrationJournal {
    async fn record(&mut self, record: &Record) -> Result<(), JournalError> {
        self.store.append(&self.id, record).await.map_err(|error| JournalError {
            what: format!("cannot record what happened to {}", self.id),
            source: Some(Box::new(error)),
        })
    }
}

fn encode<T: Serialize>(what: &str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|cause| StoreError::Content { what: what.to_owned(), cause })
}

fn decode<T: for<'de> Deserialize<'de>>(what: &str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|cause| StoreError::Content { what: what.to_owned(), cause })
}
