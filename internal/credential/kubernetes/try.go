// SPDX-License-Identifier: Apache-2.0

package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/client-go/rest"

	"remit"
)

// attempt is one request of a trial. None has an effect, whether it passes or not: it is a read, a dry run, or names something
// that does not exist.
type attempt struct {
	act     string
	granted bool
	how     string
	method  string
	path    string // with its query
	body    any    // JSON; nil: none
	patch   bool   // the body is a merge patch
	as      string // impersonated user
	review  bool   // the answer is an access review: its verdict counts
}

const (
	howDryRun = "server dry-run"
	howRead   = "read"
	howAbsent = "at an object that does not exist"
	howReview = "access review"
	absent    = "remit-probe-absent" // no object of anybody has this name
)

// prober is the holder of a twin's credential.
type prober struct {
	client *http.Client
	host   string
	token  remit.Secret
	scope  scope
}

func (d *Driver) prober(l remit.Lease, c remit.Credential) (*prober, error) {
	s, err := d.plan(l)
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(d.anonymous)
	if err != nil {
		return nil, fmt.Errorf("reach the API server as a holder: %w", err)
	}
	return &prober{client, d.anonymous.Host, c.Secret, s}, nil
}

// Try implements credential.Prober.
func (d *Driver) Try(ctx context.Context, l remit.Lease, c remit.Credential) ([]remit.Trial, error) {
	p, err := d.prober(l, c)
	if err != nil {
		return nil, err
	}
	old, err := p.standing(ctx)
	if err != nil {
		return nil, err
	}
	var out []remit.Trial
	for _, a := range p.attempts(old) {
		out = append(out, p.try(ctx, a))
	}
	return append(out, p.notTried()...), nil
}

// TryEnded implements credential.Prober.
func (d *Driver) TryEnded(ctx context.Context, l remit.Lease, c remit.Credential) remit.Trial {
	began := time.Now()
	t := remit.Trial{Act: "what was granted, after the end", Outcome: remit.TrialNotTried}
	p, err := d.prober(l, c)
	if err != nil {
		t.Detail = err.Error()
		return t
	}
	for {
		t.How = howRead
		status, words, err := p.send(ctx, p.read())
		switch {
		case status == http.StatusForbidden || status == http.StatusUnauthorized:
			t.Outcome, t.Detail = remit.TrialRefused, fmt.Sprintf("after %d ms: %s", time.Since(began).Milliseconds(), message(words))
			return t
		case ctx.Err() != nil:
			t.Detail = "still not refused after " + time.Since(began).Round(time.Millisecond).String()
			if t.Outcome != remit.TrialPassed { // it never answered
				t.Detail = fmt.Sprint("no answer: ", err)
			}
			return t
		case err == nil && passed(status):
			t.Outcome = remit.TrialPassed
		}
	}
}

func passed(status int) bool {
	return status < 300 || status == http.StatusNotFound || status == http.StatusConflict
}

// read is what every lease grants: reading its object, or listing its kind.
func (p *prober) read() attempt {
	return attempt{act: "read " + p.scope.kindName + " " + p.scope.name, granted: true, how: howRead, method: http.MethodGet, path: p.object(p.scope.name)}
}

// standing waits until the fresh credential works, and returns the object that the lease is about, nil if there is none.
func (p *prober) standing(ctx context.Context) (map[string]any, error) {
	for {
		status, words, err := p.send(ctx, p.read())
		if status == http.StatusNotFound || status == http.StatusOK && p.scope.name == "" {
			return nil, nil
		}
		if status == http.StatusOK {
			var o map[string]any
			if err := json.Unmarshal([]byte(words), &o); err != nil {
				return nil, fmt.Errorf("read the granted object: %w", err)
			}
			return o, nil
		}
		if err != nil || status != http.StatusForbidden && status != http.StatusUnauthorized {
			return nil, errors.Join(err, fmt.Errorf("the granted object cannot be read: status %d, %s", status, message(words)))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the twin's credential does not work: status %d, %s", status, message(words))
		case <-time.After(10 * time.Millisecond): // the API server has not seen the binding yet
		}
	}
}

// try sends a and judges the answer. What does not exist is looked for only after authorization and admission, and a name
// that is taken is noticed only after them, too: both passed.
func (p *prober) try(ctx context.Context, a attempt) remit.Trial {
	t := remit.Trial{Act: a.act, Granted: a.granted, How: a.how, Outcome: remit.TrialNotTried}
	status, words, err := p.send(ctx, a)
	switch {
	case err != nil:
		t.Detail = err.Error()
	case a.review && status < 300:
		var review struct{ Status struct{ Allowed bool } }
		if err := json.Unmarshal([]byte(words), &review); err != nil {
			t.Detail = "the review cannot be read"
		} else if t.Outcome = remit.TrialRefused; review.Status.Allowed {
			t.Outcome = remit.TrialPassed
		}
	case a.review: // whoever may not even ask has shown nothing
		t.Detail = message(words)
	case passed(status):
		t.Outcome = remit.TrialPassed
	case status == http.StatusForbidden:
		t.Outcome, t.Detail = remit.TrialRefused, message(words)
	default:
		t.Detail = fmt.Sprintf("status %d: %s", status, message(words))
	}
	return t
}

// send returns the status and the answer's text.
func (p *prober) send(ctx context.Context, a attempt) (int, string, error) {
	var body io.Reader = http.NoBody
	if a.body != nil {
		text, err := json.Marshal(a.body)
		if err != nil {
			return 0, "", fmt.Errorf("encode the trial %q: %w", a.act, err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, a.method, p.host+a.path, body)
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+p.token.Reveal())
	req.Header.Set("Content-Type", "application/json")
	if a.patch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	if a.as != "" {
		req.Header.Set("Impersonate-User", a.as)
	}
	res, err := p.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	text, err := io.ReadAll(io.LimitReader(res.Body, 4<<20))
	return res.StatusCode, string(text), err
}

// message is the API server's own sentence.
func message(text string) string {
	var status struct{ Message string }
	if json.Unmarshal([]byte(text), &status) == nil && status.Message != "" {
		return cut(status.Message)
	}
	return cut(text)
}

// cut keeps a ledger entry of all trials small.
func cut(text string) string {
	const most = 300
	text = strings.ToValidUTF8(text, "")
	if len(text) > most {
		_, n := utf8.DecodeLastRuneInString(text[:most])
		return text[:most-n] + "…"
	}
	return text
}

// notTried are the limits that no effect-free act can show.
func (p *prober) notTried() []remit.Trial {
	var out []remit.Trial
	for _, n := range [][2]string{
		{"exec, attach and port-forward into a pod that runs", "tried only at a pod that does not exist"},
		{"other API servers of the cluster", "one answered all of this"},
	} {
		out = append(out, remit.Trial{Act: n[0], Outcome: remit.TrialNotTried, Detail: n[1]})
	}
	_, notBounded := p.scope.bounds()
	for _, n := range notBounded {
		out = append(out, remit.Trial{Act: n, Outcome: remit.TrialNotTried, Detail: "not bounded by the grant"})
	}
	return out
}
