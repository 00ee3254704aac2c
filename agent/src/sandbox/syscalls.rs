//! seccomp: calls that the agent never makes, and that whoever has taken it over would like to.
//!
//! A list of what is forbidden and not of what is allowed: a call that a newer kernel, library or
//! path of ours makes unforeseen would otherwise break a migration that nothing threatens.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use super::{Needs, Sockets};
use crate::sys;

/// Whole calls.
const FORBIDDEN: &[i64] = &[
    // Other processes: their memory, files and ends.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    // Other programs. Threads are started by clone(2), see `conditional`.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_fork,
    libc::SYS_vfork,
    // The kernel itself.
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    // Interfaces that are large, young, or known from exploits. The tracker's programs are loaded
    // before.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_lookup_dcookie,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_personality,
    // Who one is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    // Names in file systems, and what stands behind them. Landlock says the same, where it is.
    libc::SYS_creat,
    libc::SYS_openat2,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_link,
    libc::SYS_linkat,
    libc::SYS_symlink,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_chmod,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_chown,
    libc::SYS_fchown,
    libc::SYS_lchown,
    libc::SYS_fchownat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

/// For processes that are handed their sockets. Pairs are joined to nothing else.
const SOCKETS: &[i64] = &[
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
];

/// Refuses every call by the other interface of x86-64 (x32): it comes with the same mark of its
/// architecture, has this bit in its numbers, and some numbers of its own.
const NO_X32: [sock_filter; 4] = {
    const X32: u32 = 0x4000_0000;
    const BITS: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    [
        // The number is the first field of what a filter is shown.
        instruction(LOAD, 0, 0, 0),
        instruction(BITS, 0, 1, X32),
        instruction(RETURN, 0, 0, refuse),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
};

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    // All codes are below 256.
    sock_filter { code: code.to_le_bytes()[0] as u16, jt, jf, k }
}

pub fn confine(needs: &Needs<'_>) -> Result<(), String> {
    let programs = programs(needs).map_err(|error| error.to_string())?;
    rustix::thread::set_no_new_privs(true).map_err(|errno| errno.to_string())?;
    programs.iter().try_for_each(|program| sys::add_filter(program)).map_err(|e| e.to_string())
}

fn programs(needs: &Needs<'_>) -> Result<[BpfProgram; 3], seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = conditional(needs)?;
    rules.extend(FORBIDDEN.iter().map(|number| (*number, Vec::new())));
    if needs.sockets == Sockets::Given {
        rules.extend(SOCKETS.iter().map(|number| (*number, Vec::new())));
    }
    // How it is to be done says memory, which no filter can read: as if this kernel were older than
    // the call, so that libraries use clone(2).
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([
        NO_X32.to_vec(),
        program(rules, libc::EPERM.unsigned_abs())?,
        program(unknown, libc::ENOSYS.unsigned_abs())?,
    ])
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    errno: u32,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let (otherwise, then) = (SeccompAction::Allow, SeccompAction::Errno(errno));
    SeccompFilter::new(rules, otherwise, then, TargetArch::x86_64)?.try_into()
}

/// Calls that are forbidden with some arguments: each rule is one way to be forbidden.
fn conditional(
    needs: &Needs<'_>,
) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    use SeccompCmpOp::{MaskedEq, Ne};
    let has = |argument, bits: libc::c_int| -> Result<SeccompRule, seccompiler::BackendError> {
        let bits = u64::from(bits.unsigned_abs());
        rule(argument, MaskedEq(bits), bits)
    };
    let executable = has(2, libc::PROT_EXEC)?;
    let mut rules = BTreeMap::from([
        // Nothing is compiled here: code is what was there at the start.
        (libc::SYS_mmap, vec![executable.clone()]),
        (libc::SYS_mprotect, vec![executable.clone()]),
        (libc::SYS_pkey_mprotect, vec![executable]),
        // Threads, and nothing else that clone(2) makes.
        (libc::SYS_clone, vec![rule(0, MaskedEq(CLONE_THREAD), 0)?]),
        // abort(3) raises its signal by it.
        (libc::SYS_tgkill, vec![rule(0, Ne, u64::from(std::process::id()))?]),
        // Sockets are made non-blocking by it.
        (libc::SYS_ioctl, vec![rule(1, Ne, FIONBIO)?]),
    ]);
    if needs.devices.is_empty() {
        let writing = |argument| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
            [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC]
                .into_iter()
                .map(|flag| has(argument, flag))
                .collect()
        };
        rules.insert(libc::SYS_open, writing(1)?);
        rules.insert(libc::SYS_openat, writing(2)?);
    }
    Ok(rules)
}

fn rule(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    // What the kernel takes an int for has no meaning in its upper half.
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(vec![condition])
}

const CLONE_THREAD: u64 = libc::CLONE_THREAD.unsigned_abs() as u64;
const FIONBIO: u64 = libc::FIONBIO;
