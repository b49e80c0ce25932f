// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"bytes"
	"context"
	"crypto/x509"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"remit"
	"remit/internal/identity"
)

// service implements the generated interface; FetchWITSVID and FetchWITBundles answer Unimplemented.
type service struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	*Server
}

// x509Entry is an X.509-SVID on the wire.
type x509Entry struct {
	chain, key []byte // DER
	top        []byte // key id of the root that it leads to
	renew      time.Time
}

// FetchX509SVID implements the Workload API: the complete state now, and again whenever it changes.
func (s *service) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return push(s.Server, stream, s.x509State)
}

// x509State returns the caller's SVIDs, each with the bundle, and when the first of them is to be renewed.
func (s *Server) x509State(ctx context.Context) (*workload.X509SVIDResponse, time.Time, error) {
	ids, err := s.entitled(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	roots := s.cfg.Authority.Bundle().X509Authorities()
	bundle := joinDER(roots)
	out := &workload.X509SVIDResponse{}
	var renew time.Time
	for _, e := range ids {
		entry, err := s.x509SVID(ctx, &e, roots)
		if err != nil {
			return nil, time.Time{}, s.asStatus(err)
		}
		if renew.IsZero() || entry.renew.Before(renew) {
			renew = entry.renew
		}
		out.Svids = append(out.Svids, &workload.X509SVID{SpiffeId: e.agent.ID.String(), X509Svid: entry.chain, X509SvidKey: entry.key,
			Bundle: bundle, Hint: string(e.agent.Name)})
	}
	return out, renew, nil
}

func (s *Server) x509SVID(ctx context.Context, e *entitled, roots []*x509.Certificate) (*x509Entry, error) {
	stands := func(entry *x509Entry) bool { // a dropped root takes the SVIDs below it along
		for _, r := range roots {
			if bytes.Equal(r.SubjectKeyId, entry.top) {
				return true
			}
		}
		return false
	}
	return s.x509.get(e.key(), s.cfg.Now(), stands, func() (*x509Entry, time.Time, error) {
		svid, err := s.cfg.Authority.X509SVID(e.agent.ID, e.agent.TTL)
		if err != nil {
			return nil, time.Time{}, err
		}
		_, key, err := svid.MarshalRaw()
		if err != nil {
			return nil, time.Time{}, err
		}
		leaf, last := svid.Certificates[0], svid.Certificates[len(svid.Certificates)-1]
		//remit:guard S8 TestNothingUnrecorded
		if err := s.record(ctx, e, identity.Serial(leaf), leaf.NotAfter); err != nil {
			return nil, time.Time{}, err
		}
		now := s.cfg.Now()
		renew := now.Add(leaf.NotAfter.Sub(now) / 2) // not from NotBefore, which is backdated
		return &x509Entry{chain: joinDER(svid.Certificates), key: key, top: last.AuthorityKeyId, renew: renew}, renew, nil
	})
}

// record makes it known who holds an SVID, before anybody does.
func (s *Server) record(ctx context.Context, e *entitled, credential string, until time.Time) error {
	return s.cfg.OnIssue(ctx, remit.Issued{Credential: credential, Agent: e.agent.Name, Level: e.level, Launch: e.launch,
		Workload: e.workload, Until: until.Add(time.Minute)})
}

func joinDER(certs []*x509.Certificate) []byte {
	var b []byte
	for _, c := range certs {
		b = append(b, c.Raw...)
	}
	return b
}

// push sends what state returns, at once and whenever it differs, until the caller loses the right to it or goes away. The caller
// is attested by state before each message.
func push[T any, P interface {
	*T
	proto.Message
}](s *Server, stream grpc.ServerStreamingServer[T], state func(context.Context) (P, time.Time, error)) error {
	ctx := stream.Context()
	var sent P
	for {
		standing, keys := s.cfg.Registry.Changed(), s.cfg.Authority.Changed() // before the state is read: no change is missed
		now, renew, err := state(ctx)
		if err != nil {
			return err
		}
		if sent == nil || !proto.Equal(sent, now) {
			if err := stream.Send((*T)(now)); err != nil {
				return err
			}
			sent = now
		}
		if err := s.wait(ctx, standing, keys, renew); err != nil {
			return err
		}
	}
}

// wait returns nil when the state has to be looked at again.
func (s *Server) wait(ctx context.Context, standing, keys <-chan struct{}, renew time.Time) error {
	var ended <-chan struct{}
	if c, err := callerOf(ctx); err == nil && c.bound != nil {
		ended = c.bound.done
	}
	var timer <-chan time.Time // none for what does not end
	if !renew.IsZero() {
		timer = time.After(max(renew.Sub(s.cfg.Now()), 10*time.Millisecond))
	}
	for {
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-standing:
			return nil
		case <-ended:
			return nil
		case <-timer:
			return nil
		case <-keys:
			keys, timer = nil, time.After(rand.N(s.cfg.Jitter)) //nolint:gosec // spreads load; nothing secret
		}
	}
}
