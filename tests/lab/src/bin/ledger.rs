//! The ledger writer that runs in guests, its witness, and their verdict.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Write as _, stdin, stdout},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use lab::ledger::{
    BLOCK, MAX_BLOCKS_PER_WRITE, Orders, RandomShape, Witness, read_arrivals, verify_dirs,
    verify_witnessed, write,
};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Write until killed.
    Write(WriteArgs),
    /// Collect what writers acknowledge.
    Witness {
        #[arg(long)]
        listen: SocketAddr,
        /// Arrivals, one JSON object per line; continued if it exists.
        #[arg(long)]
        out: PathBuf,
        /// Answers each connection with one line of JSON.
        #[arg(long)]
        status_listen: Option<SocketAddr>,
    },
    /// Ask a witness what it knows.
    Status { address: SocketAddr },
    /// Judge ledgers: exit code 0 if all is well, 1 if not; the verdict is printed as JSON.
    Verify {
        #[arg(long = "dir", value_delimiter = ',', required = true)]
        dirs: Vec<PathBuf>,
        /// What the witness collected; `-` is standard input.
        #[arg(long)]
        witness_file: Option<PathBuf>,
        /// Only what this VM acknowledged.
        #[arg(long, requires = "witness_file")]
        vm: Option<String>,
    },
}

#[derive(Args)]
struct WriteArgs {
    /// Directories, best on different disks.
    #[arg(long = "dir", value_delimiter = ',', required = true)]
    dirs: Vec<PathBuf>,
    /// Addresses of one witness, tried in turn.
    #[arg(long, value_delimiter = ',')]
    witness: Vec<SocketAddr>,
    /// The name told to the witness; the host's by default.
    #[arg(long)]
    vm: Option<String>,
    /// Records per second and directory; 0 is as fast as the disk.
    #[arg(long, default_value_t = 10)]
    rate: u32,
    #[arg(long, default_value_t = 0)]
    random_files: u16,
    /// Bytes of one random file.
    #[arg(long, default_value_t = 2 << 20)]
    random_size: u64,
    /// Bytes per second and directory.
    #[arg(long, default_value_t = 0)]
    random_rate: u64,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().verb {
        Verb::Write(args) => Err(write(&args.orders()?).into()),
        Verb::Witness { listen, out, status_listen } => {
            let mut witness = Witness::listen(listen, &out)?;
            if let Some(address) = status_listen {
                witness.answer_status(TcpListener::bind(address)?)?;
            }
            loop {
                thread::sleep(Duration::from_millis(200));
                if let Some(cause) = witness.failure() {
                    return Err(cause).context(format!("cannot write {}", out.display()));
                }
            }
        }
        Verb::Status { address } => {
            let mut text = String::new();
            TcpStream::connect(address)?.read_to_string(&mut text)?;
            stdout().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Verify { dirs, witness_file, vm } => {
            let verdict = match witness_file {
                None => verify_dirs(&dirs),
                Some(path) => {
                    let from: Box<dyn io::Read> = match path.to_str() {
                        Some("-") => Box::new(stdin()),
                        _ => Box::new(File::open(&path).context("cannot open the witness file")?),
                    };
                    verify_witnessed(&dirs, &read_arrivals(BufReader::new(from))?, vm.as_deref())
                }
            };
            writeln!(stdout(), "{verdict}")?;
            Ok(ExitCode::from(u8::from(!verdict.ok)))
        }
    }
}

impl WriteArgs {
    fn orders(self) -> Result<Orders> {
        let vm = match self.vm {
            Some(vm) => vm,
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")
                .context("cannot read the host's name; give --vm")?
                .trim()
                .to_owned(),
        };
        let blocks = self.random_size / u64::try_from(BLOCK)?;
        anyhow::ensure!(blocks >= MAX_BLOCKS_PER_WRITE, "--random-size is below 64 KiB");
        Ok(Orders {
            vm,
            dirs: self.dirs,
            witnesses: self.witness,
            rate: self.rate,
            random: RandomShape { files: self.random_files, blocks: u32::try_from(blocks)? },
            random_rate: self.random_rate,
            seed: self.seed,
        })
    }
}
