//! One case, and many.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fault::Fault;
use crate::judge::{Operator, Outcome};
use crate::stage::Stage;
use crate::world::Kind;

#[derive(Clone, Debug)]
pub struct Case {
    pub kind: Kind,
    pub plan: Vec<(String, Fault)>,
    pub operator: Operator,
}

pub struct Done {
    pub outcome: Outcome,
    pub struck: Vec<String>,
    pub passed: Vec<String>,
    pub violations: Vec<String>,
}

impl Case {
    pub fn run(&self) -> Done {
        virtually(async {
            let mut stage = Stage::set(self.kind, self.plan.clone()).await;
            stage.play().await;
            let outcome = stage.conclude(self.operator).await;
            Done {
                outcome,
                struck: stage.world.struck(),
                passed: stage.world.passed(),
                violations: std::mem::take(&mut stage.violations),
            }
        })
    }
}

/// In virtual time.
pub fn virtually<T>(done: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(done)
}

/// Runs them all, on every core; answers in their order.
pub fn run_each(cases: &[(String, Case)]) -> Vec<Done> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((_, case)) = cases.get(at) else { return };
                    let ran = case.run();
                    done.lock().unwrap().insert(at, ran);
                }
            });
        }
    });
    let done: Vec<Done> = done.into_inner().unwrap().into_values().collect();
    assert_eq!(done.len(), cases.len());
    done
}

/// The same; what is violated fails the test, with all that is needed to see it again.
pub fn run_all(cases: &[(String, Case)]) -> Vec<Done> {
    let done = run_each(cases);
    let bad: Vec<_> =
        cases.iter().zip(&done).filter(|(_, done)| !done.violations.is_empty()).collect();
    for ((name, case), Done { struck, outcome, violations, .. }) in bad.iter().take(SHOWN) {
        println!("{name}: {:?}, the operator {:?}\n  {outcome}", case.kind, case.operator);
        struck.iter().for_each(|struck| println!("  {struck}"));
        violations.iter().for_each(|violation| println!("  ** {violation}"));
    }
    assert!(bad.is_empty(), "{} of {} cases are not as they should be", bad.len(), cases.len());
    done
}

/// Of those that fail.
const SHOWN: usize = 400;

/// What is played: `ONLY` those whose name holds that, else one in so many, or in `EVERY`.
pub struct Asked {
    only: Option<String>,
    step: usize,
}

impl Asked {
    pub fn one_in(step: usize) -> Self {
        let only = std::env::var("ONLY").ok();
        let every = number("EVERY").map(|every| usize::try_from(every).unwrap());
        Self { only, step: every.unwrap_or(step) }
    }

    /// A case by its name, and by the numbers of its place and its fault.
    pub fn is(&self, name: &str, (place, fault): (usize, usize)) -> bool {
        match &self.only {
            Some(only) => name.contains(only),
            None => (place + fault).is_multiple_of(self.step),
        }
    }
}

/// `SEED`, else so many, or `SEEDS`.
pub fn seeds(usual: u64) -> Range<u64> {
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(usual),
    }
}

/// From the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// As much of the agents' log as is asked for.
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CAUSEWAY_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    // Another test may have been first.
    let _ = log.with_test_writer().try_init();
}
