// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"remit"
)

// maxBody is the greatest length of any reply, in bytes: manifests and tokens, never layers.
const maxBody = 8 << 20

// strict refuses plain http but for the hosts that may, and bounds every reply. The library by itself falls back to http for
// private addresses, and follows redirects and token realms wherever a registry sends it.
type strict struct {
	plain func(host string) bool
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (s strict) RoundTrip(req *http.Request) (*http.Response, error) {
	//remit:guard S14 TestPlainHTTPOnlyWhereListed
	if req.URL.Scheme != "https" && !s.plain(req.URL.Host) {
		return nil, fmt.Errorf("%s is not asked over plain http: list it under insecure if it must be", req.URL.Host)
	}
	resp, err := s.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = bounded{io.LimitReader(resp.Body, maxBody), resp.Body}
	return resp, nil
}

type bounded struct {
	io.Reader
	io.Closer
}

// unreached turns the library's error into ours.
func unreached(image remit.Image, err error) *remit.Error {
	if e, ok := errors.AsType[*transport.Error](err); ok && e.StatusCode == http.StatusNotFound {
		return &remit.Error{Code: remit.CodeNotFound, Msg: "the registry has no " + image.String(), Cause: err,
			Hint: "check repository, tag and digest"}
	}
	return &remit.Error{Code: remit.CodeUnavailable, Msg: "the registry of " + image.String() + " does not answer as it should", Cause: err,
		Hint: "check that it can be reached, and whether it needs a login (keychain)"}
}
