//! QEMU by itself, driven through its monitor.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const MODULES: &[&str] = &[
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
];

/// What is the same about a VM wherever it is.
pub struct Spec {
    vmlinuz: PathBuf,
    initrd: PathBuf,
    memory_mib: u32,
    /// MiB a second of its memory that it changes, about.
    rate: u32,
}

impl Spec {
    pub fn new(dir: &Path, memory_mib: u32, rate: u32) -> Self {
        let kernel = lab::kernel::debian_cloud().expect("a kernel");
        let tree = dir.join("initrd.d");
        for sub in ["bin", "dev", "proc", "mnt", "lib"] {
            fs::create_dir_all(tree.join(sub)).expect("a directory");
        }
        let put = |name: &str, text: &str| fs::write(tree.join(name), text).expect("a file");
        put("init", include_str!("init.sh"));
        put("work.py", lab::guest::load::INDEX);
        put("work.pl", lab::guest::load::WORDS);
        fs::copy("/usr/bin/busybox", tree.join("bin/busybox")).expect("busybox-static");
        for module in MODULES {
            let name = Path::new(module).file_name().expect("a name").to_string_lossy();
            let from = kernel.modules_dir.join(format!("kernel/drivers/{module}.ko"));
            fs::copy(from, tree.join(format!("lib/{name}.ko"))).expect("a module");
        }
        let initrd = dir.join("initrd");
        let pack = "chmod 755 init; find . | cpio --quiet -o -H newc > ../initrd";
        let packed = Command::new("sh").args(["-c", pack]).current_dir(&tree).status();
        assert!(packed.expect("cpio").success());
        Self { vmlinuz: kernel.vmlinuz, initrd, memory_mib, rate }
    }
}

/// A running QEMU. Dropping it kills it.
pub struct Vm {
    child: Child,
    qmp: BufReader<UnixStream>,
    console: PathBuf,
}

impl Vm {
    /// `disk` is raw. With `incoming` it waits for memory of another.
    pub fn start(dir: &Path, name: &str, spec: &Spec, disk: &Path, incoming: bool) -> Self {
        let (socket, console) =
            (dir.join(format!("{name}.qmp")), dir.join(format!("{name}.console")));
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg"]);
        qemu.args(["-machine", "pc", "-display", "none", "-nodefaults", "-no-user-config"]);
        // With a whole number of 256 KiB an emulated guest loses writes as it migrates: see the lab's emulator.sh.
        let memory = format!("{}k", spec.memory_mib * 1024 + 8);
        qemu.args(["-m", &memory, "-kernel"]).arg(&spec.vmlinuz);
        qemu.arg("-initrd").arg(&spec.initrd);
        let words = "console=ttyS0 no_timer_check cryptomgr.notests quiet";
        qemu.args(["-append", &format!("{words} rate={}", spec.rate)]);
        qemu.args(["-serial", &format!("file:{}", console.display())]);
        qemu.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        let file = format!("file.driver=file,file.filename={}", disk.display());
        qemu.args(["-blockdev", &format!("driver=raw,node-name=disk0,{file},discard=unmap")]);
        qemu.args(["-device", "virtio-blk-pci,drive=disk0,id=virtio0"]);
        if incoming {
            qemu.args(["-S", "-incoming", "defer"]);
        }
        let child = qemu.stdin(Stdio::null()).spawn().expect("QEMU starts");
        let began = Instant::now();
        let qmp = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break BufReader::new(stream),
                Err(cause) => assert!(began.elapsed().as_secs() < 30, "no monitor: {cause}"),
            }
            sleep(Duration::from_millis(20));
        };
        let mut vm = Self { child, qmp, console };
        vm.execute("qmp_capabilities", &json!({}));
        vm
    }

    /// # Panics
    /// With QEMU's error.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.try_execute(command, arguments)
            .unwrap_or_else(|error| panic!("{command} {arguments}: {error}"))
    }

    fn try_execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Value> {
        let said = json!({ "execute": command, "arguments": arguments }).to_string();
        writeln!(self.qmp.get_mut(), "{said}").expect("the monitor takes it");
        loop {
            let mut line = String::new();
            let len = self.qmp.read_line(&mut line).expect("the monitor answers");
            assert!(len > 0, "QEMU is gone after {command}");
            let mut answer: Value = serde_json::from_str(&line).expect("JSON");
            // Greeting and events have neither.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get_mut("error") {
                return Err(error.take());
            }
        }
    }

    /// Asks again and again until the answer is as wanted.
    pub fn until(
        &mut self,
        command: &str,
        patience: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let began = Instant::now();
        loop {
            let answer = self.execute(command, &json!({}));
            if wanted(&answer) {
                return answer;
            }
            assert!(began.elapsed() < patience, "{command} says still: {answer}");
            sleep(Duration::from_millis(5));
        }
    }

    pub fn wait_for(&self, text: &str, patience: Duration) {
        self.wait_until(text, patience, |vm| vm.said().contains(text));
    }

    pub fn wait_until(&self, what: &str, patience: Duration, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(began.elapsed() < patience, "no {what}: {}", self.said());
            sleep(Duration::from_millis(100));
        }
    }

    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The numbers that the guest has counted here, without one that it is writing.
    pub fn ticks(&self) -> Vec<u64> {
        let said = self.said();
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        let lines = whole.lines().filter_map(|line| line.trim().strip_prefix("tick "));
        lines.filter_map(|number| number.parse().ok()).collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
