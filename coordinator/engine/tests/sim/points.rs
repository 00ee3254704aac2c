//! The places at which something can go wrong. They name themselves as they are passed: what a run
//! without a fault has passed is the list of them.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// One passage: the what-th time that this was about to be done in this life of the process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    pub name: String,
    pub nth: usize,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.nth)
    }
}

/// What goes wrong at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The process dies and it is not done.
    DiesBefore,
    /// The process dies and half of it is done: a write of bytes, torn.
    DiesWithin,
    /// It is done, and the process does not live to hear of it.
    DiesAfter,
    /// It is not done, and an error is reported.
    LosesRequest,
    /// It is done, and an error is reported.
    LosesReply,
    /// It is done twice.
    Twice,
}

/// What somebody else does, right before the passage of this name.
type Hand = Box<dyn FnOnce(&str) + Send>;

/// Which passage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    Point(Point),
    /// Counted over all of them, from 0.
    Nth(usize),
}

impl From<Point> for At {
    fn from(point: Point) -> Self {
        Self::Point(point)
    }
}

/// It cannot be said whether it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost;

/// One life of a process. Clones are the same.
#[derive(Clone, Default)]
pub struct Points(Arc<Life>);

#[derive(Default)]
struct Life {
    inner: Mutex<Inner>,
    died: Notify,
    stands: Notify,
    goes_on: Notify,
}

#[derive(Default)]
struct Inner {
    passed: Vec<Point>,
    counts: BTreeMap<String, usize>,
    armed: Option<(At, Fate)>,
    beside: Option<(At, Hand)>,
    held: Option<At>,
    struck: bool,
    dead: bool,
}

impl Points {
    /// A life in which this goes wrong.
    pub fn with(at: impl Into<At>, fate: Fate) -> Self {
        let points = Self::default();
        points.lock().armed = Some((at.into(), fate));
        points
    }

    /// A life in which somebody else does something just before this.
    pub fn beside(at: impl Into<At>, hand: impl FnOnce(&str) + Send + 'static) -> Self {
        let points = Self::default();
        points.lock().beside = Some((at.into(), Box::new(hand)));
        points
    }

    /// A life that stands still just before this, until it is told to go on.
    pub fn held(at: impl Into<At>) -> Self {
        let points = Self::default();
        points.lock().held = Some(at.into());
        points
    }

    /// As [`Points::held`], from here on.
    pub fn hold(&self, at: impl Into<At>) {
        self.lock().held = Some(at.into());
    }

    /// It has come to where it stands still.
    pub async fn stands(&self) {
        self.0.stands.notified().await;
    }

    pub fn go_on(&self) {
        self.0.goes_on.notify_one();
    }

    /// This goes wrong as well.
    pub fn arm(&self, at: impl Into<At>, fate: Fate) {
        self.lock().armed = Some((at.into(), fate));
    }

    pub fn passed(&self) -> Vec<Point> {
        self.lock().passed.clone()
    }

    /// Has what was to go wrong done so?
    pub fn struck(&self) -> bool {
        self.lock().struck
    }

    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    pub async fn death(&self) {
        if !self.is_dead() {
            self.0.died.notified().await;
        }
    }

    /// Does it, or what fate has in store for it. A process that is dead waits for ever.
    pub async fn pass<T, F>(&self, name: impl Into<String>, act: impl Fn() -> F) -> Result<T, Lost>
    where
        F: Future<Output = T>,
    {
        match self.enter(name) {
            Enter::Alive => {
                self.stand_still().await;
                return Ok(act().await);
            }
            Enter::Dead | Enter::Struck(Fate::DiesBefore | Fate::DiesWithin) => {}
            Enter::Struck(Fate::DiesAfter) => drop(act().await),
            Enter::Struck(Fate::LosesRequest) => return Err(Lost),
            Enter::Struck(Fate::LosesReply) => {
                act().await;
                return Err(Lost);
            }
            Enter::Struck(Fate::Twice) => {
                act().await;
                return Ok(act().await);
            }
        }
        self.die();
        pending().await
    }

    async fn stand_still(&self) {
        let holds = {
            let mut inner = self.lock();
            let last = inner.passed.last().cloned().map(At::Point);
            inner.held.take_if(|at| last.as_ref() == Some(at)).is_some()
        };
        if holds {
            self.0.stands.notify_one();
            self.0.goes_on.notified().await;
        }
    }

    /// As [`Points::pass`] for what cannot wait.
    pub fn enter(&self, name: impl Into<String>) -> Enter {
        let mut inner = self.lock();
        if inner.dead {
            return Enter::Dead;
        }
        let name = name.into();
        let count = inner.counts.entry(name.clone()).or_default();
        *count += 1;
        let point = Point { name, nth: *count };
        let here = [At::Point(point.clone()), At::Nth(inner.passed.len())];
        if let Some((_, hand)) = inner.beside.take_if(|(at, _)| here.contains(at)) {
            inner.struck = true;
            hand(&point.name);
        }
        inner.passed.push(point);
        match inner.armed {
            Some((ref armed, fate)) if here.contains(armed) => {
                inner.struck = true;
                Enter::Struck(fate)
            }
            _ => Enter::Alive,
        }
    }

    pub fn die(&self) {
        self.lock().dead = true;
        self.0.died.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a passage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enter {
    Alive,
    Struck(Fate),
    /// It died before; what is left of it does nothing any more.
    Dead,
}
