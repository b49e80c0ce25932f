// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"remit"
	"remit/internal/config"
)

// Announcements tell webhooks that something waits for people: who asks for what, by name, with a link to look and one to deny. No
// value that an agent wrote is in them, and nothing in them can approve. The stored request itself is the queue: it remembers who
// was told, so that a restart loses nothing and may repeat a delivery, by the same id. Each webhook has its own goroutine: one that
// is dead holds up nobody else, and nothing on the line.
const (
	announceEvery = 250 * time.Millisecond
	announceLimit = 5 * time.Second // for one delivery
	announceRetry = time.Minute     // between two tries, at most
)

// webhook is one receiver.
type webhook struct {
	cfg    config.Announce
	url    string
	secret remit.Secret
	token  remit.Secret // a bearer token that it asks for; zero: none
	client *http.Client
	tries  map[remit.HoldID]trial // owned by its goroutine

	mu      sync.Mutex // guards notices, not what they point to: that is its goroutine's
	notices []*notice
}

type trial struct {
	count int
	next  time.Time
}

func newWebhook(cfg config.Announce) (*webhook, error) {
	h := &webhook{cfg: cfg, url: cfg.URL, tries: map[remit.HoldID]trial{}}
	var err error
	if h.client, err = providerClient(cfg.CA); err != nil {
		return nil, fmt.Errorf("announce: %s: %w", cfg.Name, err)
	}
	h.client.Timeout = announceLimit
	if !cfg.Path.IsZero() {
		rest, err := cfg.Path.Resolve()
		if err != nil {
			return nil, fmt.Errorf("announce: %s: path: %w", cfg.Name, err)
		}
		before, _ := url.Parse(cfg.URL)
		h.url += rest.Reveal()
		after, err := url.Parse(h.url)
		//remit:guard S39 TestAnnouncedHostIsPinned
		if err != nil || after.Host != before.Host || after.Scheme != "https" || after.User != nil {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "announce: " + cfg.Name + ": path would lead to another host", Hint: "let url end with / or path begin with it"}
		}
	}
	if !cfg.Secret.IsZero() {
		if h.secret, err = cfg.Secret.Resolve(); err != nil {
			return nil, fmt.Errorf("announce: %s: secret: %w", cfg.Name, err)
		}
		if len(h.secret.Reveal()) < 24 {
			return nil, &remit.Error{Code: remit.CodeInvalid, Msg: "announce: " + cfg.Name + ": the secret has fewer than 24 characters"}
		}
	}
	return h, nil
}

// announce tells every webhook until ctx ends.
func (s *Server) announce(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, h := range s.webhooks {
		wg.Go(func() {
			tick := time.NewTicker(announceEvery)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					s.tell(ctx, h)
					s.tellNotices(ctx, h)
				}
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	return nil
}

// tell delivers what the webhook was not told yet, oldest first.
func (s *Server) tell(ctx context.Context, h *webhook) {
	now := s.now()
	open := map[remit.HoldID]bool{}
	waiting := s.store.LiveHeld()
	slices.SortFunc(waiting, func(a, b remit.Held) int { return a.Asked.Compare(b.Asked) })
	for i := range waiting {
		x := &waiting[i]
		if !x.Open(now) || slices.Contains(x.Told, h.cfg.Name) {
			continue
		}
		open[x.ID] = true
		if t := h.tries[x.ID]; now.Before(t.next) || ctx.Err() != nil {
			continue
		}
		if err := h.deliver(ctx, s.announcement(x, h), string(x.ID), now); err != nil {
			t := trial{count: h.tries[x.ID].count + 1}
			t.next = now.Add(min(time.Second<<min(t.count, 6), announceRetry))
			h.tries[x.ID] = t
			s.log.Warn("an announcement was not delivered; it is tried again", "webhook", h.cfg.Name, "hold", x.ID, "tries", t.count, "err", err)
			continue
		}
		s.told(context.WithoutCancel(ctx), x.Digest, x.ID, h.cfg.Name) // it was told, whatever ends now
	}
	for id := range h.tries {
		if !open[id] {
			delete(h.tries, id)
		}
	}
}

// told notes a delivery. An answer that comes at the same time is first; then the delivery is noted on what it left.
func (s *Server) told(ctx context.Context, asked remit.Digest, id remit.HoldID, name string) {
	for range 3 {
		x, epoch, ok := s.store.HeldAs(asked)
		if !ok || x.ID != id || x.State != remit.HeldPending {
			return
		}
		x.Told = append(slices.Clone(x.Told), name)
		_, err := s.store.Commit(ctx, remit.Change{Rows: []remit.Row{x}, Require: []remit.Precondition{{Key: x.EpochKey(), Epoch: epoch}}})
		if remit.CodeOf(err) != remit.CodeConflict {
			return // what could not be noted is delivered again
		}
	}
}

// deliver posts a body, signed as Standard Webhooks has it: the receiver compares id, time and body with the signature.
func (h *webhook) deliver(ctx context.Context, body []byte, id string, now time.Time) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	stamp := strconv.FormatInt(now.Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "remit")
	req.Header.Set("webhook-id", "msg-"+id)
	req.Header.Set("webhook-timestamp", stamp)
	if !h.token.IsZero() {
		req.Header.Set("Authorization", "Bearer "+h.token.Reveal())
	}
	if !h.secret.IsZero() {
		mac := hmac.New(sha256.New, []byte(h.secret.Reveal()))
		fmt.Fprintf(mac, "msg-%s.%s.%s", id, stamp, body)
		req.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	res, err := h.client.Do(req)
	if err != nil {
		if e, ok := err.(*url.Error); ok { //nolint:errorlint // as http.Client documents; its text would hold the URL, which may be a secret
			err = e.Err
		}
		return err
	}
	defer res.Body.Close() //nolint:errcheck // nothing of it counts
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10))
	if res.StatusCode/100 != 2 {
		return refusalError(res.StatusCode)
	}
	return nil
}

type announcement struct {
	Type string    `json:"type"`
	At   time.Time `json:"timestamp"`
	Data struct {
		Hold       remit.HoldID        `json:"hold"`
		Agent      remit.Name          `json:"agent"`
		Action     string              `json:"action"`
		Target     string              `json:"target"`
		Permission remit.PermissionRef `json:"permission"`
		Groups     []string            `json:"groups"`
		Until      time.Time           `json:"until"`
		Link       string              `json:"link"`
		Deny       string              `json:"deny"`
	} `json:"data"`
}

func (s *Server) announcement(x *remit.Held, h *webhook) []byte {
	a := announcement{Type: "approval.asked", At: x.Asked.UTC()}
	a.Data.Hold, a.Data.Agent, a.Data.Action, a.Data.Target, a.Data.Permission, a.Data.Until = x.ID, x.Agent, x.Action, x.Target, x.Permission, x.Until.UTC()
	for i := range x.Needs {
		a.Data.Groups = append(a.Data.Groups, x.Needs[i].Match["group"])
	}
	a.Data.Link = s.baseURL() + "/approvals/" + string(x.ID)
	a.Data.Deny = a.Data.Link + "?deny=" + url.QueryEscape(h.cfg.Name+"."+denyToken(x, h.cfg.Name))
	var v any = a
	if h.cfg.Form == "slack" {
		text := fmt.Sprintf("%s asks for %s on %s (%s/%s/%s); %s may answer until %s. <%s|How to look and approve> · <%s|Deny>", slackPlain(string(x.Agent)), slackPlain(x.Action),
			slackPlain(x.Target), slackPlain(x.Permission.Workflow), slackPlain(x.Permission.Stage), slackPlain(x.Permission.Name), slackPlain(strings.Join(a.Data.Groups, ", ")),
			x.Until.UTC().Format("15:04 UTC"), a.Data.Link, a.Data.Deny)
		v = map[string]string{"text": text}
	}
	body, err := json.Marshal(v)
	if err != nil {
		panic("server: " + err.Error()) // plain structs of ours, which cannot fail
	}
	return body
}

// slackPlain keeps a name from being read as Slack's markup: its three control characters, and what does not print.
func slackPlain(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(printable(s))
}

// denyToken is what a deny link carries: it denies this one request, in the name of this webhook, and does nothing else. It counts
// until the request is answered.
func denyToken(x *remit.Held, webhook string) string {
	mac := hmac.New(sha256.New, x.Salt)
	mac.Write([]byte("remit deny v1\x00" + webhook))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
