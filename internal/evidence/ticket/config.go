// SPDX-License-Identifier: Apache-2.0

package ticket

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"remit"
)

// Config is an evidence source of change tickets, as its file writes it:
//
//	url: https://desk.company.example/api/changes/{id}
//	id: "CHG-[0-9]{1,9}"
//	token: {file: desk.token}
//	fields: {id: /number, state: /state, service: /service, namespace: /namespace, start: /window/start, end: /window/end,
//	  requester: /requester/login, approver: /approver/login, requester_groups: /requester/groups, approver_groups: /approver/groups}
//	requester_groups: [platform]
//	approver_groups: [change-board]
type Config struct {
	// URL is where a ticket is read, by GET; {id} stands in the path exactly once and is replaced by the escaped id. https
	// only.
	URL string `yaml:"url"`
	// ID is the pattern that a whole ticket id must match before anything is asked of the system.
	ID string `yaml:"id"`
	// CA is a PEM file with the roots that the system's certificate must lead to. Empty: the host's roots.
	CA string `yaml:"ca"`
	// Token is sent as Authorization: Bearer. Empty: none.
	Token SecretRef `yaml:"token"`
	// Timeout of one reading. 0: 1.5 s; at most 10 s.
	Timeout time.Duration `yaml:"timeout"`
	// Fields are where the reply holds what: field name to JSON pointer. id, state, service, namespace, start, end, requester,
	// approver, requester_groups and approver_groups are required; every other one becomes a field of the fact as it is, such
	// as customer, for run parameters to come from.
	Fields map[string]string `yaml:"fields"`
	// Same says which argument of the request a field of the ticket must equal. Left out: {service: name, namespace:
	// namespace}.
	Same map[string]string `yaml:"same"`
	// RequesterGroups are the groups from which changes may be requested; one in common is enough.
	RequesterGroups []string `yaml:"requester_groups"`
	// ApproverGroups are the groups from which changes may be approved.
	ApproverGroups []string `yaml:"approver_groups"`
	// People says which of our principals a login of the ticket system is, where the names differ: login to operator/NAME.
	People map[string]string `yaml:"people"`
}

// SecretRef says where a secret is; at most one member is set.
type SecretRef struct {
	// File holds the secret; a trailing newline is cut.
	File string `yaml:"file"`
	// Env names the environment variable that holds it.
	Env string `yaml:"env"`
}

const (
	defaultTimeout = 1500 * time.Millisecond
	maxTimeout     = 10 * time.Second
)

// required are the fields that every reply must hold (S15).
var required = []string{"id", "state", "service", "namespace", "start", "end", "requester", "approver", "requester_groups", "approver_groups"}

// check reports the first thing in c that cannot be meant, and fills in defaults.
func (c *Config) check() (*regexp.Regexp, error) {
	if err := checkURL(c.URL); err != nil {
		return nil, err
	}
	if _, err := regexp.Compile(c.ID); err != nil { // alone first: "a)|(?:.*" would slip out of the anchors
		return nil, invalid("id: "+err.Error(), "write the pattern of a whole ticket id, such as CHG-[0-9]+")
	}
	id, err := regexp.Compile("^(?:" + c.ID + ")$")
	if err != nil || c.ID == "" || id.MatchString("") {
		return nil, invalid(fmt.Sprintf("id: %.80q is not a pattern of ticket ids", c.ID), `write a regular expression such as "CHG-[0-9]{1,9}"`)
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.Timeout < 0 || c.Timeout > maxTimeout {
		return nil, invalid(fmt.Sprintf("timeout: %s is not between 0 and %s", c.Timeout, maxTimeout), "a decision waits for it")
	}
	if c.Token.File != "" && c.Token.Env != "" {
		return nil, invalid("token: file and env are both set", "write one of them")
	}
	for _, name := range required {
		if _, ok := c.Fields[name]; !ok {
			return nil, invalid(fmt.Sprintf("fields: %s is missing", name), "write the JSON pointer to where the reply holds it")
		}
	}
	for name, pointer := range c.Fields {
		if !strings.HasPrefix(pointer, "/") {
			return nil, invalid(fmt.Sprintf("fields: %s: %.80q is not a JSON pointer", name, pointer), "it begins with /")
		}
	}
	if len(c.RequesterGroups) == 0 || len(c.ApproverGroups) == 0 {
		return nil, invalid("requester_groups and approver_groups are required", "list the groups of the ticket system that may")
	}
	if c.Same == nil {
		c.Same = map[string]string{"service": "name", "namespace": "namespace"}
	}
	for name := range c.Same {
		if _, ok := c.Fields[name]; !ok || slices.Contains([]string{"requester_groups", "approver_groups"}, name) {
			return nil, invalid(fmt.Sprintf("same: %.80q is not a field of the ticket with one value", name), "name one of fields")
		}
	}
	for _, p := range c.People {
		if _, err := remit.ParseName(p); err != nil {
			return nil, err
		}
	}
	return id, nil
}

// checkURL wants https, a host, no user, and {id} as a whole segment of the path: nowhere else does escaping hold.
func checkURL(raw string) error {
	hint := "write https://HOST/PATH/{id}"
	u, err := url.Parse(strings.Replace(raw, "{id}", "id", 1))
	//remit:guard S15 TestConfigIsChecked
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return invalid(fmt.Sprintf("url: %.120q is not an https URL without user and fragment", raw), hint)
	}
	path, _, _ := strings.Cut(raw, "?")
	//remit:guard S15 TestConfigIsChecked
	if strings.Count(raw, "{id}") != 1 || (!strings.HasSuffix(path, "/{id}") && !strings.Contains(path, "/{id}/")) {
		return invalid(fmt.Sprintf("url: %.120q does not have {id} as one segment of its path", raw), hint)
	}
	return nil
}

func invalid(msg, hint string) *remit.Error {
	return &remit.Error{Code: remit.CodeInvalid, Msg: msg, Hint: hint}
}
