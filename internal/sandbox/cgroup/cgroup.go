// SPDX-License-Identifier: Apache-2.0

// Package cgroup bounds the processes of a sandbox on a Linux host: memory, processor time, number of tasks. It speaks both versions of
// control groups, below the group that this process itself is in. A group is a folder; the state is the kernel's, so that a later
// process finds and removes what an earlier one left. It starts no goroutines.
package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"remit/internal/sandbox"
)

// Limits of one group.
type Limits struct {
	Memory int64 // bytes
	CPU    int   // per cent of one processor
	Tasks  int
}

// Parent holds the groups of one driver.
type Parent struct {
	v2 bool
	// folders are by controller; on version 2 all are the same one.
	folders map[string]string
}

var controllers = []string{"memory", "pids", "cpu"}

// Open makes the group name below the group of this process. The error says what the host lacks, and the fix.
func Open(name string) (*Parent, error) { return open(name, "/proc/self") }

func open(name, self string) (*Parent, error) {
	mounts, err := os.ReadFile(filepath.Join(self, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("read the mounts: %w", err)
	}
	groups, err := os.ReadFile(filepath.Join(self, "cgroup"))
	if err != nil {
		return nil, fmt.Errorf("read the control groups of this process: %w", err)
	}
	own, unified := locate(mounts, groups)
	p := &Parent{folders: map[string]string{}}
	switch {
	case own["memory"] != "": // version 1, or both with the controllers on 1
		for _, c := range append(controllers, "cpuacct") {
			if own[c] != "" {
				p.folders[c] = filepath.Join(own[c], name)
			}
		}
	case unified != "":
		p.v2 = true
		if err := delegate(unified); err != nil {
			return nil, err
		}
		for _, c := range controllers {
			p.folders[c] = filepath.Join(unified, name)
		}
	}
	for _, c := range controllers {
		if p.folders[c] == "" {
			return nil, fmt.Errorf("this host has no control group for %s", c)
		}
	}
	for _, folder := range p.each() {
		if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make a control group: %w", err)
		}
	}
	if p.v2 {
		return p, enable(p.folders["memory"])
	}
	return p, nil
}

// locate returns the folders of this process's groups: of version 1 by controller, and of version 2.
func locate(mountinfo, groups []byte) (own map[string]string, unified string) {
	paths := map[string]string{}
	for line := range strings.Lines(string(groups)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, c := range strings.Split(parts[1], ",") {
			paths[c] = parts[2]
		}
	}
	own = map[string]string{}
	scan := bufio.NewScanner(bytes.NewReader(mountinfo))
	for scan.Scan() {
		before, after, ok := strings.Cut(scan.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		root, at := f[3], f[4]
		below := func(p string) string { // the mount may show only a part of the hierarchy
			if rest, ok := strings.CutPrefix(p, root); ok && root != "/" {
				p = rest
			}
			return filepath.Join(at, p)
		}
		switch g[0] {
		case "cgroup2":
			if p, ok := paths[""]; ok && unified == "" {
				unified = below(p)
			}
		case "cgroup":
			for _, c := range strings.Split(g[2], ",") {
				if p, ok := paths[c]; ok && own[c] == "" {
					own[c] = below(p)
				}
			}
		}
	}
	return own, unified
}

// each returns the folders without repetition.
func (p *Parent) each() []string {
	var out []string
	for _, c := range append(slices.Clone(controllers), "cpuacct") {
		if f := p.folders[c]; f != "" && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// delegate lets groups below folder have controllers. A group of version 2 has processes or groups with controllers, not both: this
// process steps down into a leaf, if it is alone.
func delegate(folder string) error {
	err := enable(folder)
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	pids, err := pidsIn(folder)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if pid != os.Getpid() && parentOf(pid) != os.Getpid() {
			return fmt.Errorf("control group %s holds processes that are not ours: start remit in a group of its own (systemd: Delegate=yes)", folder)
		}
	}
	leaf := filepath.Join(folder, "server")
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make a control group: %w", err)
	}
	for _, pid := range pids {
		if err := write(leaf, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return enable(folder)
}

func enable(folder string) error {
	have, err := os.ReadFile(filepath.Join(folder, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the controllers: %w", err)
	}
	for _, c := range controllers {
		if !slices.Contains(strings.Fields(string(have)), c) {
			return fmt.Errorf("control group %s has no controller %s: delegate it to remit (systemd: Delegate=yes)", folder, c)
		}
	}
	return write(folder, "cgroup.subtree_control", "+memory +pids +cpu")
}

// absent are settings that not every kernel has: without swap, or before Linux 5.14.
var absent = []string{"memory.swap.max", "cpu.cfs_burst_us", "cpu.max.burst"}

// Make makes a group with limits for id.
func (p *Parent) Make(id string, l Limits) (*Group, error) {
	g := p.Find(id)
	for _, folder := range g.each() {
		if err := os.Mkdir(folder, 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("make a control group: %w", err), g.Remove())
		}
	}
	quota := strconv.Itoa(l.CPU * 1000) // of a period of 100 ms
	// What it left of its quota in the period before it may use in the next (the burst): what waited may start at once, and has no more in
	// the long run.
	settings := [][3]string{{"memory", "memory.limit_in_bytes", strconv.FormatInt(l.Memory, 10)},
		{"pids", "pids.max", strconv.Itoa(l.Tasks)}, {"cpu", "cpu.cfs_quota_us", quota}, {"cpu", "cpu.cfs_burst_us", quota}}
	if p.v2 {
		settings = [][3]string{{"memory", "memory.max", strconv.FormatInt(l.Memory, 10)}, {"memory", "memory.swap.max", "0"},
			{"memory", "memory.oom.group", "1"}, {"pids", "pids.max", strconv.Itoa(l.Tasks)}, {"cpu", "cpu.max", quota + " 100000"}, {"cpu", "cpu.max.burst", quota}}
	}
	for _, s := range settings {
		err := write(g.folders[s[0]], s[1], s[2])
		if err != nil && !(slices.Contains(absent, s[1]) && errors.Is(err, fs.ErrNotExist)) {
			return nil, errors.Join(err, g.Remove())
		}
	}
	return g, nil
}

// Find returns the group of id, whether it exists or not.
func (p *Parent) Find(id string) *Group {
	g := &Group{Parent{v2: p.v2, folders: map[string]string{}}}
	for c, f := range p.folders {
		g.folders[c] = filepath.Join(f, id)
	}
	return g
}

// Close removes the parent, if it is empty.
func (p *Parent) Close() error {
	var errs []error
	for _, f := range p.each() {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Group is the group of one sandbox.
type Group struct{ Parent }

// Join returns the files into which a process writes "0" to be in the group.
func (g *Group) Join() []string {
	var out []string
	for _, f := range g.each() {
		out = append(out, filepath.Join(f, "cgroup.procs"))
	}
	return out
}

// Events is what the limits did.
func (g *Group) Events() (sandbox.Events, error) {
	file := "memory.oom_control"
	if g.v2 {
		file = "memory.events"
	}
	kills, err := number(g.folders["memory"], file, "oom_kill")
	if err != nil {
		return sandbox.Events{}, err
	}
	forks, err := number(g.folders["pids"], "pids.events", "max")
	return sandbox.Events{Kills: kills, Forks: forks}, err
}

// Usage is what the group used.
func (g *Group) Usage() (sandbox.Usage, error) {
	now, peak, use, scale := "memory.usage_in_bytes", "memory.max_usage_in_bytes", "", time.Nanosecond
	folder := g.folders["cpuacct"]
	file := "cpuacct.usage"
	if g.v2 {
		now, peak, use, scale, folder, file = "memory.current", "memory.peak", "usage_usec", time.Microsecond, g.folders["cpu"], "cpu.stat"
	}
	var u sandbox.Usage
	n, err := number(g.folders["memory"], now, "")
	u.Memory = int64(n)
	if n, e := number(g.folders["memory"], peak, ""); e == nil { // absent before Linux 5.19 on version 2
		u.Peak = int64(n)
	}
	if folder != "" {
		n, e := number(folder, file, use)
		u.CPU, err = time.Duration(n)*scale, errors.Join(err, e)
	}
	u.Throttled, _ = number(g.folders["cpu"], "cpu.stat", "nr_throttled")
	tasks, e := number(g.folders["pids"], "pids.current", "")
	u.Tasks = int(tasks)
	return u, errors.Join(err, e)
}

// Tasks is the number of tasks in the group; 0 if it is gone.
func (g *Group) Tasks() int {
	n, _ := number(g.folders["pids"], "pids.current", "")
	return int(n)
}

const stopsWithin = 500 * time.Millisecond // its ways out and its life end after that all the same

// Stop stops all processes of the group where they stand, and returns the programs that they are. What is forked meanwhile, or continued by
// another that was not stopped yet, is stopped in a later round: it is done when all stand still twice over. Signals, not the freezer:
// that of version 1 holds back the kill that follows.
func (g *Group) Stop() (programs []string, err error) {
	named, end := map[int]bool{}, time.Now().Add(stopsWithin)
	for still, round := 0, 0; still < 2; round++ {
		if round > 10 { // what its limit of processor time holds up stops when it runs again
			time.Sleep(100 * time.Microsecond)
		}
		if time.Now().After(end) {
			return programs, errors.New("the processes of a sandbox do not stand still: they continue each other")
		}
		pids, err := pidsIn(g.folders["pids"])
		if err != nil {
			return programs, err
		}
		for _, pid := range pids { // with nothing between them, so that few can be continued
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil && !errors.Is(err, syscall.ESRCH) {
				return programs, fmt.Errorf("stop the process %d of a sandbox: %w", pid, err)
			}
		}
		still++
		for _, pid := range pids {
			if !stopped(pid) || !named[pid] {
				still = 0
			}
			if name, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && !named[pid] {
				programs = append(programs, name)
			}
			named[pid] = true
		}
	}
	return programs, nil
}

// stopped reports whether a process stands still, or is none any more: the state in /proc/PID/stat (proc(5)), behind the name, which the
// process chooses.
func stopped(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	state := bytes.TrimLeft(stat[bytes.LastIndexByte(stat, ')')+1:], " ")
	return err != nil || len(state) > 0 && strings.IndexByte("TtZX", state[0]) >= 0
}

// Kill ends all processes of the group. A group that is gone has none.
func (g *Group) Kill() error {
	if g.v2 {
		err := write(g.folders["memory"], "cgroup.kill", "1")
		if err == nil || !gone(err) {
			return err
		} // else before Linux 5.14, or no group
	}
	folder := g.folders["pids"]
	for range 100 { // what forks while it is killed is killed in the next round; pids.max bounds the rounds
		pids, err := pidsIn(folder)
		if len(pids) == 0 || err != nil {
			return err
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("kill the process %d of a sandbox: %w", pid, err)
			}
		}
	}
	return nil
}

// Remove ends what runs in the group and removes it. Removing what is not there succeeds.
func (g *Group) Remove() error {
	var errs []error
	for _, f := range g.each() {
		errs = append(errs, g.remove(f))
	}
	return errors.Join(errs...)
}

func (g *Group) remove(folder string) error {
	for until := time.Now().Add(10 * time.Second); ; {
		err := os.Remove(folder)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(until) {
			return fmt.Errorf("remove a control group: %w", err)
		}
		// A killed process leaves its group a moment after it is dead; nothing announces it.
		if err := g.Kill(); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// List returns the ids that have a group.
func (p *Parent) List() ([]string, error) {
	entries, err := os.ReadDir(p.folders["pids"])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, err
}

func write(folder, file, value string) error {
	f, err := os.OpenFile(filepath.Join(folder, file), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set %s: %w", file, err)
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set %s of %s to %s: %w", file, folder, value, err)
	}
	return nil
}

// number reads a file of one number, or the line of a key. "max" is no number.
func number(folder, file, key string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(folder, file))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if key == "" && len(f) == 1 {
			return strconv.ParseUint(f[0], 10, 64)
		}
		if len(f) == 2 && f[0] == key {
			return strconv.ParseUint(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s of %s has no %s", file, folder, key)
}

func pidsIn(folder string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
	if gone(err) {
		return nil, nil
	}
	var out []int
	for _, s := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(s); err == nil {
			out = append(out, n)
		}
	}
	return out, err
}

func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) }

func parentOf(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	if f := strings.Fields(rest); len(f) > 1 {
		n, _ := strconv.Atoi(f[1])
		return n
	}
	return 0
}
