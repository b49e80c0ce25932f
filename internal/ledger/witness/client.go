// SPDX-License-Identifier: Apache-2.0

package witness

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	tlog "github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"

	"remit"
)

// Peer is a witness that a log asks.
type Peer struct {
	URL *url.URL // add-checkpoint is added to its path
	Key note.Verifier
}

// ClientConfig says whom to ask.
type ClientConfig struct {
	Peers   []Peer
	Quorum  int           // cosignatures that a checkpoint needs; 0 is all
	Timeout time.Duration // for all together; 0 is 5 s
	HTTP    *http.Client  // nil: one that follows no redirects
}

// Client asks witnesses for cosignatures. It serves one log, one call at a time.
type Client struct {
	cfg  ClientConfig
	last map[string]uint64 // by witness: the size it cosigned last, as far as we know
}

// NewClient checks the configuration.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Quorum == 0 {
		cfg.Quorum = len(cfg.Peers)
	}
	if len(cfg.Peers) == 0 || cfg.Quorum < 0 || cfg.Quorum > len(cfg.Peers) {
		return nil, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("a quorum of %d of %d witnesses cannot be reached", cfg.Quorum, len(cfg.Peers)),
			Hint: "witnesses: {quorum: 1, list: [{url: …, key: …}]}"}
	}
	seen := map[string]bool{}
	for _, p := range cfg.Peers {
		if p.URL == nil || p.Key == nil || seen[p.Key.Name()] {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "each witness needs a URL and a key, and a name of its own"}
		}
		seen[p.Key.Name()] = true
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.HTTP == nil {
		cfg.HTTP = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &Client{cfg: cfg, last: map[string]uint64{}}, nil
}

// Prove returns the consistency proof from a smaller size of the log to the checkpoint's.
type Prove func(ctx context.Context, from uint64) ([][]byte, error)

// reply is what became of one witness.
type reply struct {
	peer  Peer
	size  uint64 // that it stands at
	lines []byte // its signature
	err   error
}

// Cosign returns the checkpoint with the cosignatures of at least a quorum of witnesses; without that it is an error, which
// names each that did not cosign.
func (c *Client) Cosign(ctx context.Context, checkpoint []byte, prove Prove) ([]byte, error) {
	text, _, _ := bytes.Cut(checkpoint, []byte("\n\n"))
	var cp tlog.Checkpoint
	if _, err := cp.Unmarshal(append(bytes.Clone(text), '\n')); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	replies := make(chan reply, len(c.cfg.Peers))
	for _, p := range c.cfg.Peers {
		from := c.last[p.Key.Name()] // here: answers that come meanwhile are written there
		go func() { replies <- c.ask(ctx, p, from, cp.Size, checkpoint, prove) }()
	}
	out := bytes.Clone(checkpoint)
	got, errs := 0, []error(nil)
	for range c.cfg.Peers { // all are waited for: a late one would be out of step for the next checkpoint
		r := <-replies
		c.last[r.peer.Key.Name()] = r.size
		if r.err != nil {
			errs = append(errs, fmt.Errorf("witness %s: %w", r.peer.Key.Name(), r.err))
			continue
		}
		out = append(out, r.lines...)
		got++
	}
	//remit:guard S34 TestQuorum
	if got < c.cfg.Quorum {
		return nil, errors.Join(append([]error{&remit.Error{Code: remit.CodeUnavailable, Msg: fmt.Sprintf("%d of %d witnesses cosigned the checkpoint of size %d", got, c.cfg.Quorum, cp.Size),
			Hint: "start the witnesses of remit.yaml, or change them there"}}, errs...)...)
	}
	return out, nil
}

// ask asks one witness; when it stands elsewhere than we thought, once more from there.
func (c *Client) ask(ctx context.Context, p Peer, from, size uint64, checkpoint []byte, prove Prove) reply {
	r := reply{peer: p, size: from}
	for range 2 {
		if r.size > size {
			r.err = &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("it cosigned %d entries of this log, which has %d: the log was rolled back", r.size, size)}
			return r
		}
		var status int
		var body []byte
		status, body, r.err = c.post(ctx, p, r.size, size, checkpoint, prove)
		switch {
		case r.err != nil:
			return r
		case status == http.StatusConflict:
			n, err := strconv.ParseUint(strings.TrimSpace(string(body)), 10, 63)
			if err != nil {
				r.err = errors.New("it answered 409 without a size")
				return r
			}
			if n == r.size {
				r.err = &remit.Error{Code: remit.CodeConflict, Msg: fmt.Sprintf("it cosigned another head of size %d", n)}
				return r
			}
			r.size, r.err = n, errors.New("it moved on meanwhile")
			continue
		case status != http.StatusOK:
			r.err = fmt.Errorf("it answered %d: %.200q", status, body)
			return r
		}
		r.lines, r.err = signatureOf(checkpoint, body, p.Key)
		if r.err == nil {
			r.size = size
		}
		return r
	}
	return r
}

func (c *Client) post(ctx context.Context, p Peer, from, size uint64, checkpoint []byte, prove Prove) (int, []byte, error) {
	body := fmt.Appendf(nil, "old %d\n", from)
	if from > 0 && from < size {
		path, err := prove(ctx, from)
		if err != nil {
			return 0, nil, fmt.Errorf("prove consistency from %d: %w", from, err)
		}
		for _, h := range path {
			body = fmt.Appendf(body, "%s\n", base64.StdEncoding.EncodeToString(h))
		}
	}
	body = append(append(body, '\n'), checkpoint...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.URL.JoinPath("add-checkpoint").String(), bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	res, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close() //nolint:errcheck // only read
	answer, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	return res.StatusCode, answer, err
}

// signatureOf picks the witness's own valid signature out of its answer; nothing else gets into the checkpoint.
func signatureOf(checkpoint, lines []byte, key note.Verifier) ([]byte, error) {
	n, err := note.Open(slices.Concat(checkpoint, lines), note.VerifierList(key))
	if err != nil || len(n.Sigs) != 1 {
		return nil, errors.New("its cosignature does not verify")
	}
	for _, line := range bytes.SplitAfter(lines, []byte{'\n'}) {
		if bytes.HasPrefix(line, []byte("— "+key.Name()+" "+n.Sigs[0].Base64)) {
			return line, nil
		}
	}
	return nil, errors.New("its cosignature is not in its answer")
}
