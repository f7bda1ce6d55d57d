variable "appliance_name" {
  type    = string
  default = "dduct"
}

variable "version" {
  type    = string
  default = ""
}

variable "input_dir" {
  type = string
}

variable "output_dir" {
  type = string
}

variable "headless" {
  type    = bool
  default = true
}

variable "arch" {
  type    = string
  default = "x86_64"
}
