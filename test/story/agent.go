// SPDX-License-Identifier: Apache-2.0

package story

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

// Step is what an orchestrator says that it did; see examples/orchestrator.
type Step struct {
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

// Agent is a launched orchestrator: it works when it is told to. It is used by one goroutine.
type Agent struct {
	in    io.WriteCloser
	lines chan Step
	ended chan error
	errs  *bytes.Buffer
}

// Launch starts a program with an agent's identity in a run, by remit exec.
func (s *Story) Launch(run, as, permission string, argv ...string) (*Agent, error) {
	cmd := exec.Command(s.Path("bin", "remit"), append([]string{"--dir", s.Path("remit"), "exec", "--run", run, "--as", as, "--for", permission, "--"}, argv...)...)
	o := &Agent{lines: make(chan Step), ended: make(chan error, 1), errs: &bytes.Buffer{}}
	cmd.Stderr = o.errs
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		return nil, err
	}
	o.in = in
	go func() {
		scan := bufio.NewScanner(out)
		scan.Buffer(nil, 4<<20)
		for scan.Scan() {
			var st Step
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
	return o, nil
}

// Work has the agent do a stage of its plan, or what else an order is to it, and returns what it did.
func (o *Agent) Work(stage string) ([]Step, error) {
	if _, err := fmt.Fprintln(o.in, stage); err != nil {
		return nil, fmt.Errorf("the agent does not listen: %w\n%s", err, o.errs)
	}
	var out []Step
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

// Short is a text on one line.
func Short(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > 160 {
		text = text[:160] + "…"
	}
	return text
}
