//! A conversation with an agent, by the agent program's own `ask`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::Programs;
use serde_json::{Value, json};

/// Hangs end here: an answer takes seconds at most, but a helper has to boot first.
const PATIENCE: Duration = Duration::from_secs(300);

pub struct Talk {
    child: Child,
    requests: ChildStdin,
    messages: Receiver<Value>,
    events: Vec<Value>,
}

impl Talk {
    /// With an agent whose socket is on this machine.
    pub fn over_socket(socket: &Path) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(Programs::find()?.agent()).arg("ask").arg(socket);
        Self::by(command)
    }

    /// By a command that runs `ask`, wherever.
    pub fn by(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {command:?}"))?;
        let requests = child.stdin.take().context("stdin was piped")?;
        let stdout = child.stdout.take().context("stdout was piped")?;
        let (to, messages) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let message = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if to.send(message).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, requests, messages, events: Vec::new() })
    }

    /// The agent's answer to Hello, which `ask` says by itself.
    pub fn hello(&mut self) -> Result<Value> {
        Ok(self.answer()?["hello"].clone())
    }

    /// The reply, or an error with the failure in it.
    pub fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.requests, "{request}").context("the conversation has ended")?;
        self.answer().with_context(|| format!("asked for {request}"))
    }

    fn answer(&mut self) -> Result<Value> {
        loop {
            let message = self.next()?;
            let result = &message["reply"]["result"];
            if let Some(event) = message.get("event") {
                self.events.push(event.clone());
            } else if let Some(reply) = result.get("Ok") {
                return Ok(reply.clone());
            } else {
                bail!("{message}");
            }
        }
    }

    /// A round to its end.
    pub fn round(&mut self, number: u32) -> Result<Value> {
        self.ask(&json!({ "round": { "number": number, "limit_rate": null, "compress": 1 } }))?;
        self.wait_for_event("round_ended")
    }

    /// What an event of this kind says.
    pub fn wait_for_event(&mut self, kind: &str) -> Result<Value> {
        loop {
            while !self.events.is_empty() {
                let event = self.events.remove(0);
                if event == kind {
                    return Ok(Value::Null);
                }
                if let Some(content) = event.get(kind) {
                    return Ok(content.clone());
                }
            }
            let message = self.next()?;
            match message.get("event") {
                Some(event) => self.events.push(event.clone()),
                None => bail!("not an event: {message}"),
            }
        }
    }

    fn next(&self) -> Result<Value> {
        self.messages.recv_timeout(PATIENCE).context("the agent says nothing")
    }

    /// As if the coordinator had been killed.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // Ended already, if the agent was the first to go.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
