// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// A clock that jumps under a running server, and nowhere else on the host: the code by which the process asks for the time, the vDSO that
// the kernel maps into it, is replaced in its memory by one that asks the kernel and adds a number of seconds to the time of day. The other
// clocks stay as they are, as they do when somebody sets the clock of a host.

// skewed is the replaced code for x86-64: clock_gettime(clock, to), then, for CLOCK_REALTIME alone, to.seconds += skew.
func skewed(seconds int32) []byte {
	code := []byte{
		0xb8, 0xe4, 0x00, 0x00, 0x00, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xff, // test edi, edi
		0x75, 0x07, // jne to the end
		0x48, 0x81, 0x06, 0, 0, 0, 0, // add qword [rsi], seconds
		0xc3, // ret
	}
	binary.LittleEndian.PutUint32(code[14:], uint32(seconds))
	return code
}

// canSkew reports whether this host lets us.
func canSkew() bool { return runtime.GOARCH == "amd64" && runtime.GOOS == "linux" && os.Getuid() == 0 }

// skew DURATION: the time of day of the laboratory's server jumps by so much, against the host's; 0s puts it right. It is right again when the script is over.
func (a *attack) skew(_ *testscript.TestScript, args []string) error {
	by, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	l := a.profile.lab
	if l.clock == nil || l.clock.pid != l.process.Process.Pid {
		if l.clock, err = findClock(l.process.Process.Pid); err != nil {
			return err
		}
		a.undo = append(a.undo, func() { _ = l.clock.replace(l.clock.original) })
	}
	if by == 0 {
		return l.clock.replace(l.clock.original)
	}
	return l.clock.replace(skewed(int32(by / time.Second)))
}

// processClock is where a process asks for the time.
type processClock struct {
	pid         int
	first, last uint64 // of the mapping
	at          uint64
	original    []byte
}

func findClock(pid int) (*processClock, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c := &processClock{pid: pid}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasSuffix(lines.Text(), "[vdso]") {
			if _, err := fmt.Sscanf(lines.Text(), "%x-%x", &c.first, &c.last); err != nil {
				return nil, err
			}
		}
	}
	if c.last <= c.first {
		return nil, errors.New("the process has no vDSO")
	}
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	image := make([]byte, c.last-c.first)
	if _, err := memory.ReadAt(image, int64(c.first)); err != nil {
		return nil, err
	}
	file, err := elf.NewFile(strings.NewReader(string(image)))
	if err != nil {
		return nil, err
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return nil, err
	}
	for _, s := range symbols {
		if s.Name == "__vdso_clock_gettime" && s.Size >= uint64(len(skewed(0))) {
			c.at = c.first + s.Value
			c.original = image[s.Value:][:len(skewed(0))]
		}
	}
	if c.at == 0 {
		return nil, errors.New("the vDSO has no clock_gettime")
	}
	return c, nil
}

// replace writes the code while the process is stopped and none of its threads is in what is replaced.
func (c *processClock) replace(code []byte) error {
	for range 100 {
		if err := syscall.Kill(c.pid, syscall.SIGSTOP); err != nil {
			return err
		}
		quiet, err := c.quiet()
		if err == nil && quiet {
			err = c.write(code)
		}
		if err := errors.Join(err, syscall.Kill(c.pid, syscall.SIGCONT)); err != nil || quiet {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("the server asks for the time without pause")
}

// quiet waits until all threads stand still, and reports whether none does so in the vDSO.
func (c *processClock) quiet() (bool, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", c.pid))
	if err != nil {
		return false, err
	}
	for _, t := range threads {
		for {
			b, err := os.ReadFile(filepath.Join(t, "syscall"))
			if errors.Is(err, os.ErrNotExist) {
				break // it ended before it was stopped
			}
			text := strings.TrimSpace(string(b))
			if err != nil {
				return false, err
			}
			if text == "running" {
				time.Sleep(time.Millisecond)
				continue
			}
			var pc uint64
			fields := strings.Fields(text)
			if _, err := fmt.Sscanf(fields[len(fields)-1], "0x%x", &pc); err != nil {
				return false, err
			}
			if pc >= c.first && pc < c.last {
				return false, nil
			}
			break
		}
	}
	return true, nil
}

func (c *processClock) write(code []byte) error {
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", c.pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = memory.WriteAt(code, int64(c.at))
	return errors.Join(err, memory.Close())
}
