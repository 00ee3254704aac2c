//! A server session behind a port of this machine.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rpc::flags::Flags;
use rpc::frame::{Decoder, FRAME_MAX, Kind};
use rpc::procedures::Call;
use rpc::server::{Event, Host, Limits, Session};

/// Nothing is waited for longer than this: it is there to end a test that hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Peer {
    pub uri: String,
    events: Receiver<Event>,
    called: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is done about an event.
pub type Act = Box<dyn FnMut(&mut Session, &Event) + Send>;

impl Peer {
    pub fn start(act: impl FnMut(&mut Session, &Event) + Send + 'static) -> Self {
        Self::start_with(None, Box::new(act))
    }

    /// One that answers nothing any more, not even pings, once this procedure was called.
    pub fn mute_at(procedure: i32) -> Self {
        Self::start_with(Some(procedure), Box::new(|_, _| {}))
    }

    fn start_with(mute_at: Option<i32>, mut act: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let uri = format!("qemu+tcp://{}/system", listener.local_addr().expect("its address"));
        let (sender, events) = mpsc::channel();
        let (called, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (calls, stopped) = (Arc::clone(&called), Arc::clone(&stop));
        listener.set_nonblocking(true).expect("it does not block");
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let connection = Connection { stream, mute_at, calls: &calls };
                        connection.serve(&mut act, &sender, &stopped);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => pause(),
                    Err(error) => panic!("nobody can connect: {error}"),
                }
            }
        });
        Self { uri, events, called, stop, thread: Some(thread) }
    }

    pub fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event")
    }

    /// The procedures that were called, in order, and the features that were asked for.
    pub fn called(&self) -> String {
        self.called.lock().expect("nobody panicked").join(" ")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_none_or(|ended| ended.is_ok()));
    }
}

struct Connection<'a> {
    stream: TcpStream,
    mute_at: Option<i32>,
    calls: &'a Mutex<Vec<String>>,
}

impl Connection<'_> {
    fn serve(mut self, act: &mut Act, events: &Sender<Event>, stopped: &AtomicBool) {
        self.stream.set_nonblocking(false).expect("it blocks");
        self.stream.set_read_timeout(Some(Duration::from_millis(20))).expect("for a while");
        let began = Instant::now();
        let mut session = Session::new(host(), Limits::default(), began.elapsed());
        let mut heard = Decoder::new(FRAME_MAX);
        let mut bytes = vec![0; 64 << 10];
        while !session.is_over() && !stopped.load(Ordering::Relaxed) {
            match self.stream.read(&mut bytes) {
                Ok(0) => session.hang_up(),
                Ok(len) => {
                    heard.push(&bytes[..len]);
                    while let Ok(Some(frame)) = heard.next_frame() {
                        if frame.header.kind == Kind::Call {
                            let procedure = frame.header.procedure;
                            let call = match Call::decode(procedure, &frame.payload) {
                                Ok(Call::SupportsFeature(number)) => format!("60/{number}"),
                                _ => procedure.to_string(),
                            };
                            self.calls.lock().expect("nobody panicked").push(call);
                            if self.mute_at == Some(procedure) {
                                return wait_for(stopped);
                            }
                        }
                    }
                    session.push(&bytes[..len], began.elapsed());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => session.hang_up(),
            }
            session.tick(began.elapsed());
            while let Some(event) = session.event() {
                act(&mut session, &event);
                let _ = events.send(event);
            }
            self.send(&mut session);
        }
        self.send(&mut session);
    }

    fn send(&mut self, session: &mut Session) {
        loop {
            let output = session.output();
            if output.is_empty() {
                return;
            }
            if self.stream.write_all(&output).is_err() {
                session.hang_up();
            }
        }
    }
}

fn wait_for(stopped: &AtomicBool) {
    while !stopped.load(Ordering::Relaxed) {
        pause();
    }
}

fn pause() {
    thread::sleep(Duration::from_millis(20));
}

fn host() -> Host {
    Host {
        hostname: "agent-west".to_owned(),
        uri: "qemu:///system".to_owned(),
        hypervisor_version: 7_002_022,
        libvirt_version: 9_000_000,
        capabilities: "<capabilities/>".to_owned(),
        secure: false,
        refused_flags: Flags::POSTCOPY | Flags::POSTCOPY_RESUME | Flags::RDMA_PIN_ALL,
    }
}
