// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"remit/internal/sandbox"
)

// TestStopOfThoseWhoContinueEachOther: of processes that continue each other all the time, all stand still after Stop.
func TestStopOfThoseWhoContinueEachOther(t *testing.T) {
	p, err := Open("remit-test-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Skipf("no control groups here: %v", err)
	}
	t.Cleanup(func() { _ = p.Close() })
	for round := range 10 {
		g, err := p.Make(strconv.Itoa(round), Limits{Memory: 64 << 20, CPU: 100, Tasks: 16})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.Remove() })
		join := ""
		for _, file := range g.Join() {
			join += "echo $$ > " + file + "; "
		}
		cmd := exec.Command("/bin/sh", "-c", join+`me=$$; sh -c "while :; do kill -CONT $me 2>/dev/null; done" & while :; do kill -CONT $! 2>/dev/null; done`)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = g.Kill(); _ = cmd.Wait() })
		for deadline := time.Now().Add(5 * time.Second); g.Tasks() < 2 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Millisecond)
		programs, err := g.Stop()
		if err != nil || len(programs) != 2 {
			t.Errorf("%v %q", err, programs)
		}
		pids, err := pidsIn(g.folders["pids"])
		for _, pid := range pids {
			if !stopped(pid) {
				stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				t.Errorf("round %d: goes on: %.60s", round, stat)
			}
		}
		if err != nil || len(pids) != 2 {
			t.Errorf("%v %v", err, pids)
		}
	}
}

// TestBurst: a group may use what it left in the period before, and no more, where the kernel has that.
func TestBurst(t *testing.T) {
	p, err := Open("remit-test-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		t.Skipf("no control groups here: %v", err)
	}
	t.Cleanup(func() { _ = p.Close() })
	g, err := p.Make("burst", Limits{Memory: 64 << 20, CPU: 30, Tasks: 16})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Remove() })
	file := map[bool]string{false: "cpu.cfs_burst_us", true: "cpu.max.burst"}[p.v2]
	if n, err := number(g.folders["cpu"], file, ""); n != 30_000 && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is %d, %v", file, n, err)
	}
}

// TestLocate: the folders of this process, on version 1, on version 2, and on a host that has both.
func TestLocate(t *testing.T) {
	const v1 = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n31 25 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n32 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
	const v2 = "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	for name, c := range map[string]struct{ mounts, groups, memory, unified string }{
		"1":             {v1, "4:memory:/a\n3:cpu,cpuacct:/a\n2:pids:/b\n", "/sys/fs/cgroup/memory/a", ""},
		"2":             {v2, "0::/system.slice/remit.service\n", "", "/sys/fs/cgroup/system.slice/remit.service"},
		"both":          {v1 + "33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "4:memory:/a\n0::/c\n", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/unified/c"},
		"in a box":      {"30 25 0:26 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/box/x\n", "", "/sys/fs/cgroup/x"},
		"nothing":       {"", "", "", ""},
		"no line of it": {"30 25\nrubbish - \n", "rubbish\n0:\n", "", ""},
	} {
		own, unified := locate([]byte(c.mounts), []byte(c.groups))
		if own["memory"] != c.memory || unified != c.unified {
			t.Errorf("%s: %q %q", name, own["memory"], unified)
		}
	}
}

// TestVersion2: what is read of a group of version 2, from files as its kernel writes them.
func TestVersion2(t *testing.T) {
	dir := t.TempDir()
	p := &Parent{v2: true, folders: map[string]string{"memory": dir, "pids": dir, "cpu": dir}}
	group := filepath.Join(dir, "x")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 1\n", "pids.events": "max 7\n", "memory.current": "4096\n",
		"memory.peak": "8192\n", "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 4\nthrottled_usec 77\n", "pids.current": "3\n"} {
		if err := os.WriteFile(filepath.Join(group, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := p.Find("x")
	e, err := g.Events()
	if want := (sandbox.Events{Kills: 2, Forks: 7}); err != nil || e != want {
		t.Errorf("%+v %v", e, err)
	}
	u, err := g.Usage()
	if want := (sandbox.Usage{Memory: 4096, Peak: 8192, CPU: 1500 * time.Microsecond, Throttled: 4, Tasks: 3}); err != nil || u != want {
		t.Errorf("%+v %v", u, err)
	}
}
