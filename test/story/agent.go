// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// step is what the orchestrator says that it did; see examples/support/agent.
type step struct {
	Tool      string          `json:"tool"`
	Arguments json.RawMessage `json:"arguments"`
	Injected  bool            `json:"injected"`
	Failed    bool            `json:"failed"`
	Text      string          `json:"text"`
	Denial    struct {
		Decision string                      `json:"decision_id"`
		Reasons  []struct{ Code, Of string } `json:"reasons"`
	} `json:"denial"`
}

// orchestrator is the launched agent: it works a stage when it is told to.
type orchestrator struct {
	in    io.WriteCloser
	lines chan step
	ended chan error
	errs  *bytes.Buffer
}

// launch starts the agent with its identity, by remit exec.
func (s *support) launch() error {
	cmd := exec.Command(s.Path("bin", "remit"), "--dir", s.Path("remit"), "exec", "--run", s.run, "--as", "agent/support", "--for", "read-ticket", "--",
		s.Path("bin", "agent"), s.ticket, s.customer)
	o := &orchestrator{lines: make(chan step), ended: make(chan error, 1), errs: &bytes.Buffer{}}
	cmd.Stderr = o.errs
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return err
	}
	o.in, s.agent = in, o
	go func() {
		scan := bufio.NewScanner(out)
		scan.Buffer(nil, 4<<20)
		for scan.Scan() {
			var st step
			if json.Unmarshal(scan.Bytes(), &st) == nil {
				o.lines <- st
			}
		}
		close(o.lines)
		o.ended <- cmd.Wait()
	}()
	s.Stop(func() {
		_ = in.Close()
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		for range o.lines { // whatever it still says
		}
		<-o.ended
		late.Stop()
	})
	return nil
}

// work has the agent do a stage of its plan, and returns what it did.
func (o *orchestrator) work(stage string) ([]step, error) {
	if _, err := fmt.Fprintln(o.in, stage); err != nil {
		return nil, fmt.Errorf("the agent does not listen: %w\n%s", err, o.errs)
	}
	var out []step
	limit := time.After(3 * time.Minute)
	for {
		select {
		case st, ok := <-o.lines:
			if !ok {
				return nil, fmt.Errorf("the agent ended: %s", o.errs)
			}
			if st.Tool == "end of "+stage {
				return out, nil
			}
			out = append(out, st)
		case <-limit:
			return nil, fmt.Errorf("the agent did not end the stage %s", stage)
		}
	}
}

// short is a text on one line.
func short(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 160 {
		text = text[:160] + "…"
	}
	return text
}
