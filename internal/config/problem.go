// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"

	"remit"
)

// maxProblems bounds what one reading reports: whoever has more repairs those first.
const maxProblems = 100

// problems collects everything that is wrong, so that one reading of the files tells all of it.
type problems struct {
	list []error
	more int
}

// add writes down "FILE:LINE: what, and what to do"; line 0 is the file as a whole.
func (p *problems) add(file string, line int, format string, args ...any) {
	if len(p.list) == maxProblems {
		p.more++
		return
	}
	p.list = append(p.list, &remit.Error{Code: remit.CodeInvalid, Msg: place(file, line) + ": " + fmt.Sprintf(format, args...)})
}

func (p *problems) err() error {
	if p.more > 0 {
		return errors.Join(append(p.list, &remit.Error{Code: remit.CodeInvalid, Msg: fmt.Sprintf("and %d problems more", p.more)})...)
	}
	return errors.Join(p.list...)
}

func place(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}
