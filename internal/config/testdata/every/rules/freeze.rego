package remit.freeze

import rego.v1
