//! Causeway: two agents, which we introduce to each other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::child::Running;
use crate::disks::Disks;
use crate::ground::{Line, Place};

/// What both agents take where the processor computes AES; with another one nothing is compared.
pub const CIPHER: &str = "TLS 1.3 AES-128-GCM";
const SUITE: &str = "TLS13_AES_128_GCM_SHA256";

pub fn copy(level: i32, line: &Line<'_>, disks: &Disks) -> Result<()> {
    let target = path(&disks.target)?;
    let listen = format!("{}:0", line.target.address);
    let mut receiver =
        Agent::start(line, &line.target, &["bench-recv", target, "--listen", &listen])?;
    let hello = receiver.hear()?;
    let listens = text(&hello, "listens")?;
    let (source, level) = (path(&disks.source)?, level.to_string());
    let order = ["bench-send", source, "--to", &listens, "--compress", &level];
    let mut sender = Agent::start(line, &line.source, &order)?;
    let key = text(&sender.hear()?, "key")?;
    receiver.tell(&key)?;
    sender.tell(&text(&hello, "key")?)?;
    // A sender that fails must not leave us waiting for its receiver, which would wait for it.
    let sent = sender.end()?;
    let received = receiver.end()?;
    let suite = &sent["cipher"];
    ensure!(suite == SUITE, "the agents took {suite}: this bench wants a processor with AES");
    let (sent, received) = (&sent["digest"], &received["digest"]);
    ensure!(
        sent == received && !sent.is_null(),
        "the digests differ: {sent} was sent and {received} received"
    );
    Ok(())
}

struct Agent {
    running: Running,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Agent {
    fn start(line: &Line<'_>, place: &Place<'_>, order: &[&str]) -> Result<Self> {
        let mut command = place.command(&line.agent())?;
        command.args(order).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(&mut command, &line.log())?;
        let (stdin, stdout) = (running.stdin()?, BufReader::new(running.stdout()?));
        Ok(Self { running, stdin, stdout })
    }

    /// Its next line.
    fn hear(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let parsed = serde_json::from_str(&line);
        parsed.with_context(|| format!("the agent said {line:?} and {}", self.running.said()))
    }

    fn tell(&mut self, key: &str) -> Result<()> {
        writeln!(self.stdin, "{key}").context("the agent does not listen")
    }

    /// Its last line, once it has ended well.
    fn end(self) -> Result<Value> {
        let Self { running, stdin: _stdin, stdout } = self;
        running.wait()?;
        let mut last = Value::Null;
        for line in stdout.lines() {
            last = serde_json::from_str(&line?)?;
        }
        Ok(last)
    }
}

fn text(message: &Value, field: &str) -> Result<String> {
    let found = message[field].as_str();
    Ok(found.with_context(|| format!("no {field} in {message}"))?.to_owned())
}

fn path(path: &std::path::Path) -> Result<&str> {
    path.to_str().context("the lab's directory is not UTF-8")
}
