//! Migrations of one guest, there and back, under processes that are killed at random: `make soak-real`.
//!
//! `MIGRATIONS=100` says how many, `SEED=7` which; both are printed. What happens when is up to the
//! machine's clock, so a seed replays the blows and not the moments; each is told as it is dealt.

#![expect(clippy::unwrap_used, reason = "a test ends where a helper of it fails")]

use std::collections::BTreeMap;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use e2e::breaks::{cut, kill_libvirtd, reboot};
use e2e::{Ran, Scene, SceneOptions, VM, Way};
use fastrand::Rng;
use lab::{Scenario, Site};

/// A migration takes about so long, with the guest's boot in it.
const WITHIN: Duration = Duration::from_secs(40);
/// Blows that one migration may get.
const BLOWS_MAX: usize = 4;
/// A coordinator that does not end has hung.
const PATIENCE: Duration = Duration::from_secs(900);
/// How often its operator takes it up again when nothing is broken any more.
const TRIES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    Coordinator,
    /// ... and its machine with it; another one asks the sites.
    OperatorsMachine,
    Agent,
    /// Before the decision the helper, then the VM itself.
    DestinationQemu,
    SourceQemu,
    SourceLibvirtd,
    DestinationLibvirtd,
    SourceLine,
    DestinationLine,
    DestinationHost,
    SourceHost,
    /// Called off, if there is still a way back.
    Abort,
}

const BLOWS: [Blow; 12] = [
    Blow::Coordinator,
    Blow::OperatorsMachine,
    Blow::Agent,
    Blow::DestinationQemu,
    Blow::SourceQemu,
    Blow::SourceLibvirtd,
    Blow::DestinationLibvirtd,
    Blow::SourceLine,
    Blow::DestinationLine,
    Blow::DestinationHost,
    Blow::SourceHost,
    Blow::Abort,
];

struct Soak {
    scene: Scene,
    way: Way,
    rng: Rng,
    dealt: BTreeMap<Blow, usize>,
    ends: BTreeMap<&'static str, usize>,
}

impl Soak {
    fn source(&self) -> &Site {
        match self.way {
            Way::EastToWest => self.scene.east(),
            Way::WestToEast => self.scene.west(),
        }
    }

    fn destination(&self) -> &Site {
        match self.way {
            Way::EastToWest => self.scene.west(),
            Way::WestToEast => self.scene.east(),
        }
    }

    /// One migration to its end, whichever that is.
    fn once(&mut self) {
        let hurried = self.rng.bool();
        let limit: &[&str] = if hurried { &[] } else { &["--limit-rate", "3M"] };
        let words = self.scene.ask_for(self.way, "migrate", &[&["--yes"], limit].concat()).unwrap();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let mut going_on = Some(self.scene.command(&words).spawn().unwrap());
        let mut id = None;
        for _ in 0..=self.rng.usize(0..BLOWS_MAX) {
            let pause = self.rng.u64(0..WITHIN.as_millis().try_into().unwrap());
            let mut ended = wait(going_on.as_mut(), Duration::from_millis(pause));
            // Before its plan is agreed to there is nothing to harm.
            while id.is_none() && !ended {
                id = self.scene.ids().unwrap().pop().filter(|id| self.is_open(id));
                ended = wait(going_on.as_mut(), Duration::from_millis(200));
            }
            let Some(id) = &id else { break };
            if ended && !self.is_open(id) {
                break;
            }
            let blow = BLOWS[self.rng.usize(0..BLOWS.len())];
            println!("  {pause:>6} ms later: {blow:?}");
            *self.dealt.entry(blow).or_default() += 1;
            going_on = self.deal(blow, going_on, id);
            self.tells_the_truth();
        }
        if let Some(child) = going_on {
            tell(&finish(child));
        }
        let id = id.or_else(|| self.scene.ids().unwrap().pop()).expect("it is listed");
        self.bring_to_its_end(&id);
    }

    /// Deals it, and answers with what goes on.
    fn deal(&self, blow: Blow, going_on: Option<Child>, id: &str) -> Option<Child> {
        let (source, destination) = (self.source(), self.destination());
        match blow {
            Blow::Coordinator => {
                kill(going_on);
                return Some(self.scene.command(&["resume", id, "--yes"]).spawn().unwrap());
            }
            Blow::OperatorsMachine => {
                kill(going_on);
                self.scene.on_another_machine().unwrap();
                tell(&self.scene.causeway(&["recover"]).unwrap());
                return Some(self.recover());
            }
            Blow::Abort => {
                kill(going_on);
                return Some(self.scene.command(&["abort", id, "--yes"]).spawn().unwrap());
            }
            // Where there is no agent there is none to kill, and where the guest is down nobody.
            Blow::Agent => drop(self.scene.kill_agent(self.address())),
            Blow::DestinationQemu => drop(destination.kill_vm(VM)),
            Blow::SourceQemu => {
                drop(source.kill_vm(VM));
                self.operator_starts();
            }
            Blow::SourceLibvirtd => kill_libvirtd(source),
            Blow::DestinationLibvirtd => kill_libvirtd(destination),
            Blow::SourceLine => cut(&self.scene, source.name(), Duration::from_secs(8)),
            Blow::DestinationLine => cut(&self.scene, destination.name(), Duration::from_secs(8)),
            Blow::DestinationHost => reboot(&self.scene, destination.name()),
            Blow::SourceHost => {
                reboot(&self.scene, source.name());
                self.operator_starts();
            }
        }
        going_on
    }

    /// A VM that has crashed is started again by whoever cares for it; a fenced one does not start.
    fn operator_starts(&self) {
        // A libvirtd that has just been killed, or has not seen its VM die, says no as well.
        let starts = || self.source().virsh(&["start", VM]).is_ok();
        let started = (0..4).any(|nth| {
            sleep(Duration::from_secs(nth));
            starts()
        });
        println!("          the source is started: {started}");
        if started {
            assert!(!self.is_writing(self.destination()), "two copies run");
        }
    }

    fn recover(&self) -> Child {
        self.scene.command(&["recover", "--settle", "--yes"]).spawn().unwrap()
    }

    /// Its operator goes on with it until it has ended.
    fn bring_to_its_end(&mut self, id: &str) {
        // Lost with its machine before either site had heard of it.
        let was_begun = self.scene.ids().unwrap().iter().any(|known| known == id);
        for _ in 0..TRIES {
            if !self.is_open(id) {
                break;
            }
            let ran = finish(self.scene.command(&["resume", id, "--yes"]).spawn().unwrap());
            tell(&ran);
            self.tells_the_truth();
            if !self.is_open(id) {
                break;
            }
            // The ledgers know more than the journal, or a person has to start what has crashed.
            let verdict = self.verdict(id);
            let is_down = verdict.contains(&format!("belongs to {}", self.source().name()));
            if (is_down || verdict.contains("lives at")) && !self.is_writing(self.destination()) {
                self.operator_starts();
            }
            tell(&finish(self.recover()));
        }
        assert!(!self.is_open(id), "no end: {}", self.status(id));
        let arrived = self.status(id).contains("fully migrated");
        let end = match (was_begun, arrived) {
            (false, _) => "never begun",
            (true, true) => "arrived",
            (true, false) => "taken back",
        };
        *self.ends.entry(end).or_default() += 1;
        if arrived {
            assert!(!self.source().is_running(VM).unwrap(), "the source runs as well");
            if !self.destination().is_running(VM).unwrap() {
                self.destination().virsh(&["start", VM]).unwrap();
            }
            self.scene.causeway(&["discard", id, "--yes"]).unwrap();
            self.way = match self.way {
                Way::EastToWest => Way::WestToEast,
                Way::WestToEast => Way::EastToWest,
            };
        } else if !self.source().is_running(VM).unwrap() {
            self.operator_starts();
        }
        let elsewhere = self.destination().virsh(&["list", "--all", "--name"]).unwrap();
        assert!(elsewhere.trim().is_empty(), "left elsewhere: {elsewhere}");
        self.scene.ledger_is_whole(self.address()).unwrap();
        println!("  {end}");
    }

    /// Of the guest, where it lives.
    fn address(&self) -> std::net::Ipv4Addr {
        match self.way {
            Way::EastToWest => self.scene.at_east,
            Way::WestToEast => self.scene.at_west,
        }
    }

    fn is_open(&self, id: &str) -> bool {
        let listed = self.told(&["status", id, "--json"]).json();
        assert!(!listed.is_empty(), "status says nothing of {id}");
        listed.iter().any(|one| {
            let phase = one["phase"].as_str().unwrap_or_default();
            one["id"] == id && !matches!(phase, "retired" | "rolled_back")
        })
    }

    fn status(&self, id: &str) -> String {
        self.told(&["status", id]).stdout
    }

    /// What it says, sure or not.
    fn told(&self, words: &[&str]) -> Ran {
        let ran = self.scene.causeway(words).unwrap();
        assert!(matches!(ran.code, 0 | 5), "{words:?}: exit {} {}", ran.code, ran.stderr);
        assert!(!ran.stdout.trim().is_empty(), "{words:?} says nothing: {}", ran.stderr);
        ran
    }

    fn verdict(&self, id: &str) -> String {
        self.status(id).lines().next().unwrap_or_default().to_owned()
    }

    /// Is a VM with write access seen to run at the site? A helper has none of its own will. A libvirtd
    /// that was killed shows nothing.
    fn is_writing(&self, site: &Site) -> bool {
        let runs = site.is_running(VM).unwrap_or(false);
        let xml = || site.virsh(&["dumpxml", VM]);
        runs && xml().is_ok_and(|xml| !xml.contains("<kernel>"))
    }

    /// Never two, and what the status says of where it lives is so.
    fn tells_the_truth(&self) {
        let both = self.is_writing(self.source()) && self.is_writing(self.destination());
        assert!(!both, "two copies run");
        let alarms = self.scene.witness.alarms();
        assert!(alarms.is_empty(), "the witness saw two writers or lost records: {alarms:?}");
        let Some(id) = self.scene.ids().unwrap().pop() else { return };
        let told = self.status(&id);
        let claims = |told: &str, site: &Site| told.contains(&format!("lives at {}", site.name()));
        for (here, there) in
            [(self.source(), self.destination()), (self.destination(), self.source())]
        {
            // It may have moved between the two looks, and does not move back.
            if claims(&told, here) && self.is_writing(there) {
                let again = self.status(&id);
                assert!(!claims(&again, here), "{} runs it: {again}", there.name());
            }
        }
        assert!(!told.contains("ALARM"), "{told}");
    }
}

/// Answers whether it ended by itself.
fn wait(child: Option<&mut Child>, time: Duration) -> bool {
    let Some(child) = child else { return true };
    let began = Instant::now();
    while began.elapsed() < time {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        sleep(Duration::from_millis(20));
    }
    false
}

fn kill(child: Option<Child>) {
    if let Some(mut child) = child {
        drop(child.kill());
        child.wait().unwrap();
    }
}

fn finish(mut child: Child) -> Ran {
    // What it prints is less than a pipe holds, or somebody has to read it meanwhile.
    let began = Instant::now();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let read = |from: Box<dyn std::io::Read + Send>| {
        std::thread::spawn(move || std::io::read_to_string(from).unwrap_or_default())
    };
    let (stdout, stderr) = (read(Box::new(out)), read(Box::new(err)));
    while child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "the coordinator hangs");
        sleep(Duration::from_millis(50));
    }
    let code = child.wait().unwrap().code().unwrap_or(-1);
    Ran { code, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn tell(ran: &Ran) {
    let last = |text: &str| text.lines().find(|line| line.starts_with("error")).map(str::to_owned);
    println!("          exit {} {}", ran.code, last(&ran.stderr).unwrap_or_default());
}

#[test]
fn whatever_is_killed_no_record_is_lost_and_never_two_run() {
    let of = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let migrations = of("MIGRATIONS").unwrap_or(100);
    let seed = of("SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("SEED={seed} MIGRATIONS={migrations}");
    let scene = Scene::start(Scenario::Relay.builder(), &SceneOptions::default()).unwrap();
    let (rng, way) = (Rng::with_seed(seed), Way::EastToWest);
    let mut soak = Soak { scene, way, rng, dealt: BTreeMap::new(), ends: BTreeMap::new() };
    for nth in 0..migrations {
        println!("migration {nth}, {:?}", soak.way);
        soak.once();
    }
    println!("{migrations} migrations: {:?}, dealt {:?}", soak.ends, soak.dealt);
}
