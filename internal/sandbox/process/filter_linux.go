// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"strings"

	"github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"
)

// allowed are the system calls of a tool: files, memory, processes and threads, time, signals, sockets by family. What is not here is
// refused: mounts, namespaces, modules, tracing, keys, bpf, io_uring, userfaultfd, perf, clocks, handles, whatever comes next.
var allowed = strings.Fields(`
read write open openat openat2 close close_range stat fstat lstat newfstatat statx poll ppoll lseek mmap mprotect munmap mremap msync mincore
madvise brk pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 access faccessat faccessat2 pipe pipe2 select pselect6 dup dup2 dup3
fcntl flock fsync fdatasync sync syncfs truncate ftruncate getdents getdents64 getcwd chdir fchdir rename renameat renameat2 mkdir mkdirat
rmdir creat link linkat unlink unlinkat symlink symlinkat readlink readlinkat chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
umask utime utimes utimensat futimesat statfs fstatfs fallocate fadvise64 readahead sendfile splice tee copy_file_range memfd_create
inotify_init inotify_init1 inotify_add_watch inotify_rm_watch getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo rt_sigsuspend sigaltstack
signalfd signalfd4 kill tkill tgkill pause alarm getitimer setitimer pidfd_open pidfd_send_signal restart_syscall
fork vfork execve execveat exit exit_group wait4 waitid set_tid_address set_robust_list get_robust_list futex futex_waitv futex_wait
futex_wake futex_requeue arch_prctl prctl rseq membarrier sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_getscheduler
sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority setpriority ioprio_get getcpu getpid getppid gettid getuid
geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid setpgid getsid setsid getrlimit setrlimit prlimit64 getrusage times
uname sysinfo capget getrandom time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep timer_create timer_settime
timer_gettime timer_getoverrun timer_delete timerfd_create timerfd_settime timerfd_gettime eventfd eventfd2 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 connect accept accept4 bind listen sendto recvfrom sendmsg
recvmsg sendmmsg recvmmsg shutdown socket clone ioctl getsockname getpeername setsockopt getsockopt socketpair mlock munlock mlock2
shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl
`)

const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// filter refuses every system call that is not listed, sockets of other families and new namespaces. It holds for all that the process
// becomes. There are three filters, of which the strictest answer counts: after a condition on an argument that does not hold, the
// library goes on to compare that argument, not the call's number, so that a filter has one condition and it comes last.
func filter() error {
	info, err := arch.GetInfo("")
	if err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	var names []string
	for _, name := range allowed {
		if _, ok := info.SyscallNames[name]; ok { // old ones are not everywhere
			names = append(names, name)
		}
	}
	other := seccomp.ArgumentConditions{}
	for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6} {
		other = append(other, seccomp.Condition{Argument: 0, Operation: seccomp.NotEqual, Value: family})
	}
	spaces := seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: newNamespaces}}
	refuse := func(name string, when seccomp.ArgumentConditions) seccomp.Policy {
		return seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionErrno, NamesWithCondtions: []seccomp.NameWithConditions{{Name: name, Conditions: when}}}}}
	}
	list := seccomp.Policy{DefaultAction: seccomp.ActionErrno, Syscalls: []seccomp.SyscallGroup{
		// The flags of clone3 lie in memory, where a filter does not see them; "not there" makes libraries take clone.
		{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
		{Action: seccomp.ActionAllow, Names: names}}}
	for _, policy := range []seccomp.Policy{refuse("socket", other), refuse("clone", spaces), list} {
		if err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: policy}); err != nil {
			return fmt.Errorf("filter system calls: %w", err)
		}
	}
	return nil
}
