// SPDX-License-Identifier: Apache-2.0

package egress

import (
	"bytes"
	"errors"
	"io"
	"strings"

	"remit"
)

// form is one way in which a secret can stand in an answer.
type form struct {
	secret remit.Secret
	fail   []int // of Knuth, Morris and Pratt: for each length, the longest proper prefix that is also a suffix
}

type forms []form

func newForm(s string) form {
	f := form{secret: remit.NewSecret(s), fail: make([]int, len(s)+1)}
	for i, k := 1, 0; i < len(s); i++ {
		for k > 0 && s[i] != s[k] {
			k = f.fail[k]
		}
		if s[i] == s[k] {
			k++
		}
		f.fail[i+1] = k
	}
	return f
}

// open is how many of the last bytes of b could be the beginning of the form.
func (f *form) open(b []byte) int {
	text := f.secret.Reveal()
	if n := len(text) - 1; len(b) > n {
		b = b[len(b)-n:]
	}
	k := 0
	for _, c := range b {
		for k > 0 && (k == len(text) || c != text[k]) {
			k = f.fail[k]
		}
		if c == text[k] {
			k++
		}
	}
	return k
}

// errSecret cuts an answer.
var errSecret = errors.New("it carries the credential that was injected")

func (in *injection) found(s string) bool {
	for i := range in.forms {
		if strings.Contains(s, in.forms[i].secret.Reveal()) {
			return true
		}
	}
	return false
}

// reader returns r up to where a form of the secret begins.
func (in *injection) reader(r io.ReadCloser) io.ReadCloser {
	s := &scanned{ReadCloser: r, forms: in.forms, buf: make([]byte, 0, 64<<10)}
	if w, ok := r.(io.ReadWriteCloser); ok { // of an upgraded connection
		return struct {
			io.ReadCloser
			io.Writer
		}{s, w}
	}
	return s
}

// scanned holds back only bytes that could be the beginning of a form: a stream of events is not delayed.
type scanned struct {
	io.ReadCloser
	forms forms
	buf   []byte // read; of it, what may not leave yet are the bytes from ready on
	ready int
	err   error
}

// Read implements io.Reader.
func (s *scanned) Read(out []byte) (int, error) {
	for s.ready == 0 {
		if s.err != nil {
			return 0, s.err
		}
		s.fill()
	}
	n := copy(out, s.buf[:s.ready])
	s.buf = s.buf[:copy(s.buf, s.buf[n:])]
	s.ready -= n
	return n, nil
}

func (s *scanned) fill() {
	room := s.buf[len(s.buf):cap(s.buf)]
	n, err := s.ReadCloser.Read(room[:min(len(room), 32<<10)])
	s.buf = s.buf[:len(s.buf)+n]
	s.err = err
	hold := 0
	for i := range s.forms {
		f := &s.forms[i]
		//remit:guard S28 TestSecretIsCut
		if bytes.Contains(s.buf, []byte(f.secret.Reveal())) {
			s.buf, s.ready, s.err = s.buf[:0], 0, errSecret
			return
		}
		hold = max(hold, f.open(s.buf))
	}
	if s.err != nil {
		hold = 0 // nothing follows
	}
	s.ready = len(s.buf) - hold
}
