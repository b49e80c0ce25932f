// SPDX-License-Identifier: Apache-2.0

package config

import (
	"regexp"
	"sync"
)

// expression is a regular expression that is compiled at its first use: every call of the program pays for what is done before
// main, and few come here.
type expression struct {
	text string
	once func() *regexp.Regexp
}

func expr(text string) expression {
	return expression{text, sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })}
}

func (e expression) MatchString(s string) bool { return e.once().MatchString(s) }

func (e expression) FindStringSubmatch(s string) []string { return e.once().FindStringSubmatch(s) }

func (e expression) String() string { return e.text }
