// SPDX-License-Identifier: Apache-2.0

package token

import (
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"remit/internal/gateway"
)

// maxParameters bounds a form; OAuth's largest requests have about a dozen.
const maxParameters = 32

// form is a strictly parsed body: every name once (RFC 6749 section 3.2), UTF-8, an empty value counts as absent.
type form struct {
	values map[string]string
	size   int // bytes of the body
}

func (f *form) get(name string) string { return f.values[name] }

func readForm(r *http.Request) (form, error) {
	t, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := params["charset"]
	if err != nil || t != "application/x-www-form-urlencoded" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return form{}, bad("the content type must be application/x-www-form-urlencoded")
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, gateway.MaxBody+1))
	if err != nil {
		return form{}, bad("the body could not be read")
	}
	//remit:guard S35 TestBadForms
	if len(body) > gateway.MaxBody {
		return form{}, bad("the body is longer than " + strconv.Itoa(gateway.MaxBody) + " bytes")
	}
	return parseForm(string(body))
}

func parseForm(body string) (form, error) {
	f := form{values: map[string]string{}, size: len(body)}
	for n := 0; body != ""; n++ {
		var pair string
		pair, body, _ = strings.Cut(body, "&")
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(rawName)
		value, err2 := url.QueryUnescape(rawValue)
		if err1 != nil || err2 != nil || name == "" || !utf8.ValidString(name) || !utf8.ValidString(value) {
			return form{}, bad("the body is not a form: see application/x-www-form-urlencoded")
		}
		//remit:guard S17 TestBadForms
		if _, twice := f.values[name]; twice {
			return form{}, bad("a parameter stands twice")
		}
		//remit:guard S35 TestBadForms
		if n >= maxParameters {
			return form{}, bad("more than " + strconv.Itoa(maxParameters) + " parameters")
		}
		f.values[name] = value
	}
	return f, nil
}

// txnToken returns the run token of the header, of which there may be one.
func txnToken(values []string) (string, error) {
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1 || len(values[0]) > 8<<10 || values[0] == "":
		return "", bad("Txn-Token must hold one run token")
	}
	return values[0], nil
}
